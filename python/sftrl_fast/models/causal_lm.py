"""Token log-probabilities of a transformers causal model, without ever holding the logits."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sftrl_fast.core import UserError
from sftrl_fast.models.forward_pass import hidden_states
from sftrl_fast.models.packed import PackedTokens
from sftrl_fast.ops.attention import PackedRows
from sftrl_fast.ops.logprob import logprob

HEAD_TOLERANCE = 0.05
"""Nats; bf16 rounding of the logits stays below it, a scaled or capped head far above."""

CausalLM = PreTrainedModel
"""What the trainer handles: any transformers model with a decoder and an output embedding."""


def token_logprobs(
    model: CausalLM, tokens: PackedTokens, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of ``tokens.targets``, float32 ``[N]`` each.

    temperature: of the distribution both are taken under.
    """
    hidden = hidden_states(model, tokens)
    weight = model.get_output_embeddings().weight
    return logprob(hidden, weight, tokens.targets, temperature=temperature)


@torch.no_grad()
def check_head(model: CausalLM, ids: list[int]) -> None:
    """``UserError`` if packed rows do not give what the model itself gives for a row.

    Some families scale or cap their logits or add a bias, which :func:`token_logprobs` would leave out.
    """
    row = torch.tensor(ids, device=model.device)
    logits = model(input_ids=row.unsqueeze(0), use_cache=False).logits[0, :-1].float()
    expected = logits.log_softmax(-1).gather(1, row[1:, None])[:, 0]
    place = torch.arange(len(ids), device=row.device)
    ends = torch.tensor([0, len(ids)], dtype=torch.int32, device=row.device)
    layout = PackedRows(ends, torch.full_like(ends[:1], -1))
    found, _ = token_logprobs(model, PackedTokens(row, place, layout, place[:-1], row[1:]))
    gap = float((found - expected).abs().mean())
    if gap > HEAD_TOLERANCE:
        raise UserError(
            f"model.name: a {type(model).__name__} does not compute its logits as hidden states times the output "
            f"embedding (log-probabilities differ by {gap:.2g} nats); such models are not supported yet"
        )
