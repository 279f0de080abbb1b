"""Training on the engine's kernels: gradients as exact as those of transformers' modules."""

from __future__ import annotations

import copy
import functools
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sftrl_fast.config import LoraConfig
from sftrl_fast.core import Row
from sftrl_fast.models import native_pass
from sftrl_fast.models.adapters import add_lora
from sftrl_fast.models.causal_lm import token_logprobs
from sftrl_fast.models.decoder import Decoder
from sftrl_fast.models.forward_pass import choose_pass, set_pass
from sftrl_fast.models.packed import PackedTokens
from sftrl_fast.train.pack import micro_batches

MARGIN = 3.0
"""Our float32 error against float64 may be this many times that of transformers' modules."""

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 42,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def adapted(model: Any) -> Any:
    add_lora(model, LoraConfig(rank=3, alpha=6))
    return model


FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=8)),
    "tied, with biases": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "hidden_size": 48})),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, head_dim=24, sliding_window=None)),
    "adapted": lambda: adapted(LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=8))),
}


def make(family: str) -> Any:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def rows() -> list[Row]:
    """Three prompts, one with a single answer that was sampled, and answers of one token up."""
    generator = torch.Generator().manual_seed(1)

    def some(count: int) -> list[int]:
        return torch.randint(0, 50, (count,), generator=generator).tolist()

    made = []
    for prompt, answers in ((some(7), (3, 9, 1)), (some(1), (5, 2)), (some(12), (4,))):
        for count in answers:
            trained = [False] * len(prompt) + [place != 2 for place in range(count)]
            logprobs = [-1.0] * sum(trained)
            made.append(Row(prompt + some(count), trained, len(prompt), sampled_logprobs=logprobs))
    return made


def batches(max_tokens: int = 10_000) -> list[PackedTokens]:
    return [batch.tokens for batch in micro_batches(rows(), max_tokens, torch.device("cpu"))]


def gradients(model: Any, way: str, max_tokens: int = 10_000) -> dict[str, Tensor]:
    """Of a weighted sum over all trained tokens, a micro-batch after the other; those of trained parameters."""
    set_pass(model, way)
    model.zero_grad(set_to_none=True)
    for tokens in batches(max_tokens):
        logp, entropy = token_logprobs(model, tokens, temperature=0.9)
        ((logp + 0.1 * entropy) * (tokens.targets - 20)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def exact(model: Any) -> Any:
    """A float64 copy whose norms do not go through float32, as transformers' own do."""
    wide = copy.deepcopy(model).double()
    for module in wide.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_exact_norm, module)
    return wide


def _exact_norm(norm: Any, x: Tensor) -> Tensor:
    scaled: Tensor = norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return scaled


def assert_as_exact(found: dict[str, Tensor], usual: dict[str, Tensor], true: dict[str, Tensor]) -> None:
    assert found.keys() == usual.keys() == true.keys()
    for name, right in true.items():
        floor = torch.finfo(torch.float32).eps * float(right.norm())
        allowed = MARGIN * max(float((usual[name] - right).norm()), floor)
        assert float((found[name] - right).norm()) <= allowed, name


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_as_exact_as_those_of_transformers_modules(family: str) -> None:
    model = make(family)
    true = gradients(exact(model), "transformers")
    assert_as_exact(gradients(model, "native"), gradients(model, "transformers"), true)
    assert all(float(grad.abs().max()) > 0 for grad in true.values())


@pytest.mark.parametrize("trained", ["q_proj", "up_proj.weight", "bias", "layers.1", "norm", "embed_tokens"])
def test_only_what_is_trained_gets_a_gradient_and_it_is_the_same(trained: str) -> None:
    model = make("tied, with biases")
    everything = gradients(model, "native")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    found = gradients(model, "native")
    assert found
    assert set(found) == {name for name in everything if trained in name}
    for name, grad in found.items():
        if name != "model.embed_tokens.weight":
            assert torch.equal(grad, everything[name]), name


def test_micro_batches_add_up() -> None:
    model = make("qwen3")
    true = gradients(exact(model), "transformers")
    assert len(batches(20)) > 2
    assert_as_exact(gradients(model, "native", 20), gradients(model, "transformers", 20), true)


def test_checkpointing_changes_no_bit_and_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama").train()
    plain = gradients(model, "native")
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.disable_input_require_grads()
    calls = []
    real = native_pass.checkpoint
    monkeypatch.setattr(native_pass, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    for name, grad in gradients(model, "native").items():
        assert torch.equal(grad, plain[name]), name
    assert len(calls) == SHAPE["num_hidden_layers"]


def test_a_step_of_the_optimizer_is_seen() -> None:
    model = make("llama")
    (tokens,) = batches()
    set_pass(model, "native")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    before, _ = token_logprobs(model, tokens)
    before.sum().backward()
    optimizer.step()
    after, _ = token_logprobs(model, tokens)
    set_pass(model, "transformers")
    expected, _ = token_logprobs(model, tokens)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


def test_engine_and_trainer_share_the_packed_weights_and_do_not_keep_the_model() -> None:
    model = make("llama")
    decoder = Decoder(model)
    (tokens,) = batches()
    set_pass(model, "native")
    with torch.no_grad():
        token_logprobs(model, tokens)
        packed = decoder._weights.layers[0].qkv.packed
        model.model.layers[0].self_attn.v_proj.weight.mul_(2)
        token_logprobs(model, tokens)
    assert decoder.weights_version == 2
    assert decoder.sync(thorough=False), "the decoder's own tables are of the old version"
    assert decoder._weights.layers[0].qkv.packed is packed
    gone = weakref.ref(model)
    del model, decoder
    assert gone() is None


def test_auto_takes_the_kernels_where_every_op_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    assert choose_pass(model) == "native"
    assert choose_pass(model.bfloat16()) == "native"
    assert choose_pass(model.double()) == "transformers"
    model.float()
    monkeypatch.setenv("SFTRL_IMPL", "torch")
    assert choose_pass(model) == "transformers"
    assert native_pass.why_not(model) == "op linear runs on torch for torch.float32 on cpu"
