"""The run folder, and checkpoints in it: one safetensors file, checked to the last bit.

File layout: safetensors (an 8-byte little-endian header length, a JSON header, the tensors' bytes). The
header's ``__metadata__`` holds ``format``, ``version``, ``state`` (JSON) and ``checksum``: the SHA-256 of the
whole file with the 64 digits of the checksum itself set to ``0``. Any safetensors reader opens it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import tomli_w
import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from sftrl_fast.core import UserError
from sftrl_fast.runtime.files import replacing, write_text

FORMAT = "sftrl-fast checkpoint"
VERSION = "1"

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# Inside a JSON string every quote is escaped, so these bytes can only be the metadata key.
_CHECKSUM_KEY = b'"checksum":"'
_NO_CHECKSUM = "0" * 64
_CHUNK = 1 << 22


def save(path: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Replace ``path`` by a checkpoint, atomically; the old one stays until the new one is on disk.

    ``state`` must be JSON: string keys, no tuples or sets; floats come back bit for bit. Tensors that share
    memory are written once each, so give tied weights under one name.

    Raises:
        UserError: the file cannot be written (no disk space, no permission); the old one is still there.
        TypeError: ``state`` is not JSON, or a tensor's type has no name in safetensors.
    """
    # Widest elements first keeps every tensor aligned without gaps, which the format forbids.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = _header({name: tensors[name] for name in names}, state)
    size = len(header) + sum(tensors[name].nbytes for name in names)
    digest = hashlib.sha256(header)
    with replacing(path, size) as file:
        file.write(header)
        for name in names:
            data = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            file.write(data)
            digest.update(data)
        file.seek(header.index(_CHECKSUM_KEY) + len(_CHECKSUM_KEY))
        file.write(digest.hexdigest().encode())


def load(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, on ``device``, and the state that :func:`save` was given.

    Raises:
        UserError: the file is missing, truncated, changed in any bit, or of another format version.
    """
    try:
        _check(path)
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata()
            if metadata["version"] != VERSION:
                raise UserError(
                    f"checkpoint {str(path)!r} has format version {metadata['version']}; this sftrl-fast "
                    f"reads version {VERSION}: use the sftrl-fast that wrote it, or start a new run"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except OSError as fault:
        raise UserError(f"checkpoint {str(path)!r} cannot be read: {fault.strerror or fault}") from None
    except SafetensorError as fault:
        raise UserError(f"checkpoint {str(path)!r} cannot be read: {fault}") from None
    return tensors, json.loads(metadata["state"])


def _header(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> bytes:
    entries: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "checksum": _NO_CHECKSUM,
            "state": json.dumps(state, separators=(",", ":")),
        }
    }
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"tensor {name!r} has type {tensor.dtype}, which a checkpoint cannot hold")
        end = offset + tensor.nbytes
        shape = list(tensor.shape)
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check(path: Path) -> None:
    """``UserError`` unless the file is a checkpoint and its checksum holds."""
    with path.open("rb") as file:
        header = _read_header(file)
        place = header.find(_CHECKSUM_KEY) + len(_CHECKSUM_KEY)
        stored = header[place : place + len(_NO_CHECKSUM)]
        if place < len(_CHECKSUM_KEY) or json.dumps(FORMAT).encode() not in header:
            raise UserError(
                f"{str(path)!r} is not a checkpoint of sftrl-fast, or its first bytes are damaged"
            )
        digest = hashlib.sha256(header[:place] + _NO_CHECKSUM.encode() + header[place + len(stored) :])
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest().encode() != stored:
        raise UserError(f"checkpoint {str(path)!r} is truncated or corrupt: its checksum does not match")


def _read_header(file: BinaryIO) -> bytes:
    """Length and JSON; too short if the file is damaged, since a length beyond its end is not believed."""
    length = file.read(8)
    left = os.fstat(file.fileno()).st_size - len(length)
    return length + file.read(min(int.from_bytes(length, "little"), left))


class RunFolder:
    """Everything one run writes. Locked while it is open, so that two processes never train in one folder;
    the lock dies with its process, however that ends.

    Open it with :meth:`create` or :meth:`open`, and close it, or use it as a context manager.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path / ".lock")

    @classmethod
    def create(cls, out: Path | None, name: str) -> RunFolder:
        """A new, empty folder: ``out``, else ``runs/<name>-<YYYYmmdd-HHMMSS>``.

        Raises:
            UserError: ``out`` is a file or a folder with something in it, or cannot be made.
        """
        path = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}" if out is None else out
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"out={str(path)!r} is not empty; name a new or empty folder")
            folder = cls(path)
            folder.figures.mkdir()
        except OSError as fault:
            raise UserError(f"out={str(path)!r} cannot be made: {fault.strerror}") from None
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that was stopped, to go on with. Stopped early, it may have no checkpoint.

        Raises:
            UserError: there is no such run, or another process has it open.
        """
        if not (path / "config.toml").is_file():
            raise UserError(f"resume={str(path)!r} is no run folder: it has no config.toml")
        return cls(path)

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results_path(self) -> Path:
        return self.path / "results.json"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def arm_path(self, name: str) -> Path:
        """Where the final weights of an arm stand, such as ``seed0/rl``."""
        return self.path / "models" / name

    def write_config(self, config: BaseModel) -> None:
        """The resolved settings as ``config.toml``; :func:`sftrl_fast.config.load_config` reads them back."""
        write_text(self.config_path, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def _lock(path: Path) -> BinaryIO:
    try:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
    except BlockingIOError:
        raise UserError(f"run folder {str(path.parent)!r} is in use by another process") from None
    except OSError as fault:
        raise UserError(f"run folder {str(path.parent)!r} cannot be locked: {fault.strerror}") from None
    return file
