from __future__ import annotations

import pytest
import torch
from tests.models.exact import exact
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sftrl_fast.core import Row, UserError
from sftrl_fast.models.causal_lm import check_head, token_logprobs
from sftrl_fast.models.load import load
from sftrl_fast.models.packed import PackedTokens
from sftrl_fast.train.pack import micro_batches


def packed(rows: list[list[int]], prompt: int) -> PackedTokens:
    """One prompt for all rows; every other token is wanted."""
    whole = [Row(ids, [i >= prompt for i in range(len(ids))], prompt=prompt) for ids in rows]
    (batch,) = micro_batches(whole, 10_000, torch.device("cpu"))
    return batch.tokens


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_the_models_own_logits(temperature: float) -> None:
    model = load("tiny", device="cpu").model
    ids = torch.randint(0, 500, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[:, :5] = ids[0, :5]
    expected = (model(input_ids=ids).logits[:, :-1] / temperature).log_softmax(-1)
    expected = expected.gather(2, ids[:, 1:, None])[:, 4:, 0].flatten()
    found, _ = token_logprobs(model, packed(ids.tolist(), 5), temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "llama": LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)),
    "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS)),
    "qwen3": Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, head_dim=16)),
    "mistral": MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=64)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_gradients_are_those_of_padded_rows(family: str) -> None:
    model = exact(FAMILIES[family])
    generator = torch.Generator().manual_seed(1)
    prompt, lengths = 7, (3, 9, 1, 5)
    shared = torch.randint(0, 50, (prompt,), generator=generator).tolist()
    rows = [shared + torch.randint(0, 50, (n,), generator=generator).tolist() for n in lengths]
    found, _ = token_logprobs(model, packed(rows, prompt))
    model.zero_grad()
    (found * torch.arange(1, len(found) + 1)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}

    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logp = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    logp = logp.gather(2, ids[:, 1:, None])[..., 0]
    expected = torch.cat([logp[i, prompt - 1 : len(row) - 1] for i, row in enumerate(rows)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    model.zero_grad()
    (expected * torch.arange(1, len(found) + 1)).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-9, atol=1e-9)


def test_what_packing_cannot_do_is_refused() -> None:
    windowed = MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=8))
    token_logprobs(windowed, packed([list(range(8)), list(range(6))], 4))
    with pytest.raises(UserError, match="sees 8 tokens back and a row has 9"):
        token_logprobs(windowed, packed([list(range(9)), list(range(6))], 4))
    dropping = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, attention_dropout=0.5)).train()
    with pytest.raises(UserError, match="drops attention weights"):
        token_logprobs(dropping, packed([[1, 2, 3]], 1))


def test_packed_rows_leave_the_models_own_generation_as_it_was() -> None:
    model, fresh = load("tiny", device="cpu").model, load("tiny", device="cpu").model
    token_logprobs(model, packed([[1, 2, 3, 4]], 2))
    ids = torch.tensor([[0, 0, 7, 8], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    for with_cache in (True, False):
        made = [
            m.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=with_cache)
            for m in (model, fresh)
        ]
        assert torch.equal(*made)


def test_a_model_that_scales_its_logits_is_refused() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CohereConfig(vocab_size=64, num_key_value_heads=2, logit_scale=4.0, **sizes)
    with pytest.raises(UserError, match="CohereForCausalLM"):
        check_head(CohereForCausalLM(config), [1, 2, 3, 4])
    check_head(load("tiny", device="cpu").model, [1, 2, 3, 4])
