from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sftrl_fast.config import load_config
from sftrl_fast.core import UserError
from sftrl_fast.runtime import checkpoint
from sftrl_fast.runtime.checkpoint import RunFolder
from sftrl_fast.runtime.files import write_json

TENSORS = {
    "half": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "scalar": torch.tensor(float("nan")),
    "empty": torch.zeros(0, 7, dtype=torch.int64),
    "bytes": torch.get_rng_state(),
    "flags": torch.tensor([True, False, True]),
    "double": torch.tensor([0.1, -0.0], dtype=torch.float64),
}
STATE = {
    "step": 7,
    "loss": 0.1 + 0.2,
    "rng": [2**127 + 1, None],
    "text": 'é "checksum":"0" \u0000',
    "on": True,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, TENSORS, STATE)
    return path


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_tensors_and_state_come_back_bit_for_bit(saved: Path) -> None:
    tensors, state = checkpoint.load(saved, "cpu")
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert bits(tensors[name]) == bits(tensor)


def test_plain_safetensors_reads_the_file(saved: Path) -> None:
    with safe_open(saved, framework="np") as file:
        assert file.get_tensor("double").tolist() == [0.1, -0.0]
        assert json.loads(file.metadata()["state"]) == STATE


def test_loaded_tensors_outlive_a_new_save_at_the_same_path(saved: Path) -> None:
    tensors, _ = checkpoint.load(saved, "cpu")
    checkpoint.save(saved, {"half": torch.zeros(3, 5)}, {})
    assert bits(tensors["half"]) == bits(TENSORS["half"])


def test_every_flipped_bit_is_found(saved: Path) -> None:
    data = saved.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    # All of the length and of the header around it, and a sample of the tensors' bytes.
    for place in [*range(header + 8), *range(header + 8, len(data), 97), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        saved.write_bytes(damaged)
        with pytest.raises(UserError) as fault:
            checkpoint.load(saved, "cpu")
        assert "\n" not in str(fault.value), place


@pytest.mark.parametrize("kept", [0, 3, 8, 100, -1])
def test_a_truncated_file_is_found(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        checkpoint.load(saved, "cpu")


def test_bytes_after_the_end_are_found(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(UserError, match="corrupt"):
        checkpoint.load(saved, "cpu")


def test_another_format_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", "99")
        checkpoint.save(path, TENSORS, STATE)
    with pytest.raises(UserError, match=r"version 99.*reads version 1"):
        checkpoint.load(path, "cpu")


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        checkpoint.load(tmp_path / "none.safetensors", "cpu")


def test_a_full_disk_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"checkpoint\.safetensors.*no disk space \([\d,]+ bytes needed, [\d,]+ bytes"
    ):
        checkpoint.save(saved, TENSORS, {})
    assert saved.read_bytes() == old
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_write_that_the_system_refuses_leaves_the_old_checkpoint(saved: Path) -> None:
    old = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            checkpoint.save(saved, {"big": torch.zeros(1 << 16)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == old
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_state_that_is_not_json_leaves_the_old_checkpoint(saved: Path) -> None:
    old = saved.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(saved, TENSORS, {"bad": {1, 2}})
    with pytest.raises(TypeError, match="complex"):
        checkpoint.save(saved, {"bad": torch.zeros(2, dtype=torch.complex64)}, {})
    assert saved.read_bytes() == old


def test_kill_nine_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    code = (
        "import sys, torch; from pathlib import Path; from sftrl_fast.runtime import checkpoint\n"
        "for step in range(10**9):\n"
        "    checkpoint.save(Path(sys.argv[1]), {'t': torch.full((200_000,), float(step))}, {'step': step})\n"
        "    print(step, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(7):
            done = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    tensors, state = checkpoint.load(path, "cpu")
    assert state["step"] >= done
    assert (tensors["t"] == state["step"]).all()


def test_create_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        RunFolder.create(tmp_path, "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    with pytest.raises(UserError, match=r"kept\.txt' cannot be made"):
        RunFolder.create(tmp_path / "kept.txt", "tiny")


def test_create_takes_an_empty_or_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with RunFolder.create(tmp_path / "empty", "x"), RunFolder.create(tmp_path / "deep" / "er", "x") as deep:
        assert deep.figures.is_dir()
    monkeypatch.chdir(tmp_path)
    with RunFolder.create(None, "tiny") as folder:
        assert folder.path.parent == Path("runs")
        assert folder.path.name.startswith("tiny-2")


def test_the_config_in_the_folder_is_the_config_that_was_written(tmp_path: Path) -> None:
    config = load_config(
        overrides={"seeds": [3, 5], "rl.lr": 3.1e-7, "task.options": {"rewards": "reference"}}
    )
    with RunFolder.create(tmp_path / "run", "x") as folder:
        folder.write_config(config)
    with RunFolder.open(tmp_path / "run") as folder:
        assert load_config(file=folder.config_path) == config
        assert tomllib.loads(folder.config_path.read_text())["rl"]["lr"] == 3.1e-7


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.toml"):
        RunFolder.open(tmp_path / "none")


def test_one_process_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = (
        "import sys, time; from pathlib import Path; from sftrl_fast.config import load_config\n"
        "from sftrl_fast.runtime.checkpoint import RunFolder\n"
        "folder = RunFolder.create(Path(sys.argv[1]), 'x'); folder.write_config(load_config())\n"
        "print('ready', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(UserError, match="in use by another process"):
            RunFolder.open(run)
        child.send_signal(signal.SIGKILL)
    RunFolder.open(run).close()


def test_json_files_refuse_what_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"rate": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"rate": float("nan")})
    assert json.loads(path.read_text()) == {"rate": 0.5}
