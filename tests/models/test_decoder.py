"""The engine's forward pass: what it covers, and that it never runs on weights of yesterday."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sftrl_fast.models.decoder import Decoder
from sftrl_fast.models.weights import WeightsWatch
from sftrl_fast.ops.attention import CacheRows

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | changes))).eval()


def logits(decoder: Decoder, ids: list[int]) -> Tensor:
    """Of every token, encoded in one pass."""
    length, page = len(ids), 4
    pages = -(-length // page)
    shape = (pages, decoder.kv_heads, page, decoder.head_dim)
    keys, values = ([torch.full(shape, float("nan")) for _ in range(decoder.layers)] for _ in range(2))
    table = [
        torch.tensor(rows, dtype=torch.int32)
        for rows in ([0, length], [0], [[]], [0], [[*range(pages)]], [length])
    ]
    rows = CacheRows(*table)
    at = torch.arange(length)
    hidden = decoder.hidden(torch.tensor(ids), at, at, rows, keys, values, at)
    return decoder.logits(hidden)


def assert_current(decoder: Decoder, model: Any) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    assert torch.allclose(logits(decoder, ids), expected, atol=1e-4)


def by_optimizer(model: Any, **settings: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, **settings)
    model(torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def by_copy(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.copy_(torch.randn(48, 32))


def by_new_storage(model: Any) -> None:
    weight = model.model.layers[0].self_attn.k_proj.weight
    weight.data = weight.data * 1.5


def by_loading(model: Any) -> None:
    model.load_state_dict({name: tensor * 1.1 for name, tensor in model.state_dict().items()})


SEEN_AT_ONCE: list[Callable[[Any], None]] = [
    by_optimizer,
    lambda model: by_optimizer(model, fused=True),
    lambda model: by_optimizer(model, foreach=True),
    by_copy,
    by_new_storage,
    by_loading,
]


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("change", SEEN_AT_ONCE)
def test_weights_are_never_stale(
    change: Callable[[Any], None], impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTRL_IMPL", impl)
    model = llama()
    decoder = Decoder(model)
    assert_current(decoder, model)
    assert not decoder.sync(thorough=True)
    assert decoder.weights_version == 1
    change(model)
    assert decoder.sync(thorough=False)
    assert decoder.weights_version == 2
    assert_current(decoder, model)
    assert not decoder.sync(thorough=False)
    assert not decoder.sync(thorough=True)


def test_a_write_that_torch_does_not_count_is_seen_by_its_values() -> None:
    model = llama()
    decoder = Decoder(model)
    model.model.layers[1].self_attn.o_proj.weight.data[3, 4] += 0.5
    assert decoder.sync(thorough=True)
    assert_current(decoder, model)


def test_a_step_that_changes_nothing_is_no_new_version() -> None:
    model = llama()
    watch = WeightsWatch(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.0)
    by_optimizer(llama())
    assert not watch.changed(thorough=False)
    assert watch.version == 1


def test_a_type_that_no_kernel_takes_runs_on_the_references() -> None:
    model = llama().double()
    ids = [3, 1, 4, 1]
    decoder = Decoder(model)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].float()
    caches = [[torch.zeros(1, 2, 4, 8, dtype=torch.float64) for _ in range(2)] for _ in range(2)]
    table = [torch.tensor(rows, dtype=torch.int32) for rows in ([0, 4], [0], [[]], [0], [[0]], [4])]
    at = torch.arange(4)
    hidden = decoder.hidden(torch.tensor(ids), at, at, CacheRows(*table), *caches, at)
    assert torch.allclose(decoder.logits(hidden).float(), expected, atol=1e-4)


def exchange(model: Any, module: nn.Module) -> Any:
    model.model.layers[1].mlp.down_proj = module
    return model


class Own(LlamaForCausalLM):
    pass


def with_hook() -> Any:
    model = llama()
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return model


def half_and_half() -> Any:
    model = llama()
    model.lm_head.to(torch.bfloat16)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)),
            "GPT2LMHeadModel is none of",
        ),
        (lambda: Own(LlamaConfig(**SHAPE)), "a Own is none of"),
        (lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)), "window of 16 tokens"),
        (
            lambda: Qwen2ForCausalLM(
                Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=16, max_window_layers=1)
            ),
            "window of 16 tokens",
        ),
        (lambda: llama(hidden_act="gelu"), "activation is 'gelu'"),
        (
            lambda: llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "rotary embedding is of type 'dynamic'",
        ),
        (lambda: exchange(llama(), nn.Sequential(nn.Linear(48, 32))), "down_proj is a Sequential"),
        (with_hook, "model.layers.0 has forward hooks"),
        (half_and_half, "several types"),
    ],
)
def test_what_is_not_covered_is_refused_with_the_reason(model: Callable[[], Any], reason: str) -> None:
    made = model()
    assert reason in Decoder.why_not(made)
    with pytest.raises(ValueError, match="is not covered"):
        Decoder(made)


def test_a_window_that_no_context_reaches_is_covered() -> None:
    assert Decoder.why_not(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=64))) == ""
    assert Decoder.why_not(Qwen2ForCausalLM(Qwen2Config(**SHAPE))) == ""
