"""All layers in one call against the same kernels called one by one: the same bits, at every level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.mllama_case import make
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sftrl_fast.models.decoder import Decoder
from sftrl_fast.ops.attention import CacheRows, Shown

PAGE, PAGES = 4, 12
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 42,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
MODELS: dict[str, Any] = {
    "plain": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=8)),
    "biases": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=16, attention_bias=True, mlp_bias=True)),
    "gates fill panels": lambda: LlamaForCausalLM(
        LlamaConfig(**{**SHAPE, "intermediate_size": 96}, head_dim=8)
    ),
    "gates fill panels, biases": lambda: LlamaForCausalLM(
        LlamaConfig(**{**SHAPE, "intermediate_size": 48}, head_dim=16, mlp_bias=True)
    ),
    "head norms": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "one layer, narrow": lambda: LlamaForCausalLM(
        LlamaConfig(**{**SHAPE, "num_hidden_layers": 1, "intermediate_size": 6, "head_dim": 8})
    ),
    "pictures": lambda: make(1).model,  # its last layer looks at them
}


def rows(*tables: Any) -> CacheRows:
    made = CacheRows(*(torch.tensor(table, dtype=torch.int32) for table in tables))
    made.check(int(made.query_offsets[-1]), PAGES, PAGE)
    return made


# A prompt of 5 tokens in pages 7, 2 is encoded beside a sequence of 9 in 0, 1, 3; then two sequences go on behind the
# prompt, one with two tokens and one with one, beside the ninth-and-one of the other.
FIRST = (
    rows([0, 5, 14], [0, 0], [[0]], [0], [[7, 2, 0], [0, 1, 3]], [5, 9]),
    [*range(5), *range(9)],
    [28, 29, 30, 31, 8, 0, 1, 2, 3, 4, 5, 6, 7, 12],
)
SECOND = (
    rows([0, 1, 3, 4], [0, 1, 1], [[0, 0], [7, 2]], [0, 5], [[0, 1, 3], [5, 0, 0], [6, 0, 0]], [10, 2, 1]),
    [9, 5, 6, 5],
    [13, 20, 21, 24],
)


def picture(decoder: Decoder, tokens: int, looking: list[int] | None) -> Shown | None:
    """Six positions in pages 3 and 1 and a seventh in page 5; of ``looking`` every third is ahead of the picture."""
    if not decoder.cross_layers:
        return None
    generator = torch.Generator().manual_seed(3)
    shape = (PAGES, decoder.kv_heads, PAGE, decoder.head_dim)
    keys, values = (
        [torch.randn(shape, generator=generator).to(decoder.dtype) for _ in range(decoder.cross_layers)]
        for _ in range(2)
    )
    places = list(range(tokens)) if looking is None else looking
    count = len(places)
    seen = rows([*range(count + 1)], [0] * count, [[3, 1]], [6], [[5]] * count, [1] * count)
    follows = torch.zeros(tokens, 1, dtype=torch.bool)
    follows[[place for i, place in enumerate(places) if i % 3]] = True
    return Shown(None if looking is None else torch.tensor(looking), seen, keys, values, follows)


def run(decoder: Decoder, wanted: tuple[list[int], list[int]]) -> list[Tensor]:
    shape = (PAGES, decoder.kv_heads, PAGE, decoder.head_dim)
    keys, values = (
        [torch.full(shape, float("nan"), dtype=decoder.dtype) for _ in range(decoder.layers)]
        for _ in range(2)
    )
    found = []
    looks = ([1, 2, 4, 8, 12, 13], None)
    for (table, positions, slots), places, looking in zip((FIRST, SECOND), wanted, looks, strict=True):
        tokens = torch.arange(len(positions)) * 7 % 50
        found.append(
            decoder.hidden(
                tokens,
                torch.tensor(positions),
                torch.tensor(slots),
                table,
                keys,
                values,
                torch.tensor(places, dtype=torch.int64),
                picture(decoder, len(positions), looking),
            )
        )
    return [*found, *keys, *values]


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_call_gives_the_bits_of_many(
    name: str, dtype: torch.dtype, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    one, many = Decoder(model), Decoder(model, fused=False)
    monkeypatch.setattr(torch, "empty", poisoned)
    for wanted in (([4, 13], [0, 2, 3]), ([*range(14)], [*range(4)]), ([], [1])):
        for a, b in zip(run(one, wanted), run(many, wanted), strict=True):
            assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0)), level
    assert not torch.isnan(run(one, ([0], [1]))[0]).any()


def test_only_cpp_kernels_are_run_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["plain"]()
    assert Decoder(model)._blind is not None
    assert Decoder(model, fused=False)._blind is None
    assert Decoder(model.double())._blind is None
    monkeypatch.setenv("SFTRL_IMPL", "torch")
    assert Decoder(model.float())._blind is None
