"""LoRA: the engine samples, and training trains, what peft computes; what is saved is read by others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sftrl_fast.config import LoraConfig, load_config
from sftrl_fast.core import UserError
from sftrl_fast.evaluate import load_configured, make_engine
from sftrl_fast.models.adapters import FOLDER, add_lora, merged, weight
from sftrl_fast.models.decoder import Decoder
from sftrl_fast.models.load import LanguageModel, load, save
from sftrl_fast.rollout.request import Request, RequestKey, SamplingParams

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'sftrl-fast[lora]'")

IDS = torch.arange(2, 30)[None]


def adapted(dtype: str = "float32", **settings: Any) -> LanguageModel:
    """The tiny model with adapters that say something."""
    language = load("tiny", dtype=dtype, device="cpu")
    add_lora(language.model, LoraConfig(**({"rank": 4} | settings)))
    shake(language.model)
    return language


@torch.no_grad()
def shake(model: Any, size: float = 0.05) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.add_(torch.randn_like(parameter) * size)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits
    return found.float()


def greedy(language: LanguageModel, backend: str) -> list[int]:
    config = load_config(overrides={"model.device": "cpu", "rollout.backend": backend})
    params = SamplingParams(max_new_tokens=24, temperature=0.0)
    request = Request(language.chat.prompt_ids("Four cards: 2, 3, 4, K"), RequestKey(0, 0, 0, 0, 0))
    (done,) = make_engine(language, config).generate([request], params)
    return done.token_ids


def test_adapters_change_nothing_at_first_and_are_the_same_each_time() -> None:
    plain = load("tiny", device="cpu")
    before = logits(plain.model)
    state = torch.get_rng_state()
    add_lora(plain.model, LoraConfig(rank=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(plain.model), before)
    again = load("tiny", device="cpu").model
    add_lora(again, LoraConfig(rank=4))
    for one, other in zip(plain.model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_adapters_of_float32_are_trained() -> None:
    language = adapted("bfloat16", targets=("q_proj", "down_proj"))
    trained = {name: p for name, p in language.model.named_parameters() if p.requires_grad}
    layers = language.model.config.num_hidden_layers
    assert len(trained) == layers * 2 * 2
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "down_proj"}


def test_the_engine_samples_what_peft_computes() -> None:
    language = adapted()
    assert Decoder.why_not(language.model) == ""
    first = greedy(language, "native")
    assert first == greedy(language, "hf")
    shake(language.model, 0.3)
    second = greedy(language, "native")
    assert second == greedy(language, "hf")
    assert first != second


def test_a_dropout_or_two_adapters_at_once_are_not_covered() -> None:
    language = adapted(targets=("q_proj",))
    layer = language.model.model.layers[0].self_attn.q_proj
    layer.lora_dropout["default"] = torch.nn.Dropout(0.1)
    assert "q_proj is adapted by a LoRA with dropout" in Decoder.why_not(language.model)
    layer.lora_dropout["default"] = torch.nn.Identity()
    layer.merge()
    assert "adapted otherwise than by one LoRA" in Decoder.why_not(language.model)


def test_what_is_merged_is_rounded_once() -> None:
    layer = adapted("bfloat16").model.model.layers[0].mlp.up_proj
    found = weight(layer)
    assert found.dtype == torch.bfloat16
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    true = layer.base_layer.weight.double() + 32 / 4 * (b.double() @ a.double())
    assert (found.double() - true).abs().max() <= 2**-8 * true.abs().max()


def test_a_saved_model_is_read_by_transformers_and_its_adapter_by_peft(tmp_path: Path) -> None:
    language = adapted()
    expected = logits(language.model)
    save(language.model, language.tokenizer, tmp_path / "arm")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "arm").eval()
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-4)
    assert not any(".lora_" in name for name, _ in whole.named_parameters())
    base = load("tiny", device="cpu").model
    assert (logits(base) - expected).abs().max() > 0.1
    again = peft.PeftModel.from_pretrained(base, tmp_path / "arm" / FOLDER).eval()
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)


def test_merged_has_the_names_of_the_plain_model() -> None:
    assert merged(adapted().model).keys() == load("tiny", device="cpu").model.state_dict().keys()


def test_frozen_parts_get_no_adapters() -> None:
    settings = {"model.name": "tiny-image", "model.device": "cpu", "model.freeze": ["vision"], "lora.rank": 2}
    model = load_configured(load_config(overrides=settings)).model
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert not any("vision_model" in name for name in trained)
    assert any("multi_modal_projector" in name for name in trained)
    assert any("cross_attn" in name for name in trained)


def test_targets_that_are_no_layers_are_named() -> None:
    with pytest.raises(UserError, match=r"lora.targets=\['wq'\]: no linear layer .*'wq'; there are .*q_proj"):
        add_lora(load("tiny", device="cpu").model, LoraConfig(rank=1, targets=("wq",)))


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"lora.rank=8 needs peft: pip install 'sftrl-fast\[lora\]'"):
        add_lora(load("tiny", device="cpu").model, LoraConfig(rank=8))
