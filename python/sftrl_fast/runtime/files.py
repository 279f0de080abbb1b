"""Files that are either whole or not there: written beside the old one, synced, renamed over it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sftrl_fast.core import UserError


@contextmanager
def replacing(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends without a fault.

    The temporary name is ``<path>.tmp``, always the same, so that what a killed process left is written over
    by the next try; one process at a time may write a path. ``size`` is the number of bytes to come, for the
    message when the disk is full.

    Raises:
        UserError: the file could not be written; it names the file and the reason. What stood at ``path`` is
            untouched and the temporary file is gone.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as fault:
        _remove(temporary)
        raise UserError(f"{str(path)!r} cannot be written: {_reason(fault, path.parent, size)}") from None
    finally:
        _remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8. Raises ``UserError`` as :func:`replacing` does."""
    data = text.encode()
    with replacing(path, len(data)) as file:
        file.write(data)


def write_json(path: Path, data: Any) -> None:
    """Replace ``path`` by ``data`` as indented JSON. ``ValueError`` for NaN and infinity, which it lacks."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _remove(temporary: Path) -> None:
    """After the rename nothing is there; a folder that cannot be written needs no second complaint."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """The rename itself is on disk only when the folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(fault: OSError, folder: Path, size: int | None) -> str:
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f"{size:,} bytes needed, " if size is not None else ""
        return f"no disk space ({needed}{shutil.disk_usage(folder).free:,} bytes free)"
    return fault.strerror or str(fault)
