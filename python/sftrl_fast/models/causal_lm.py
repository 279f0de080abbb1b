"""Token log-probabilities of a transformers causal model, without ever holding the logits."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sftrl_fast.core import UserError
from sftrl_fast.ops.logprob import logprob

HEAD_TOLERANCE = 0.05
"""Nats; bf16 rounding of the logits stays below it, a scaled or capped head far above."""

CausalLM = PreTrainedModel
"""What the trainer handles: any transformers model with a decoder and an output embedding."""


def token_logprobs(
    model: CausalLM, ids: Tensor, trained: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of the trained tokens, float32 ``[T]`` each, in row order.

    ids: int64 ``[B, L]``, rows padded on the right. Padding follows every real token, so causal attention
    needs no mask. trained: bool ``[B, L]``; column 0 must be False, since nothing predicts a row's first token.
    temperature: of the distribution both are taken under.
    """
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    target = trained[:, 1:]
    weight = model.get_output_embeddings().weight
    return logprob(hidden[:, :-1][target], weight, ids[:, 1:][target], temperature=temperature)


@torch.no_grad()
def check_head(model: CausalLM, ids: list[int]) -> None:
    """``UserError`` if the model's logits are not hidden states times the output embedding.

    Some families scale or cap their logits or add a bias, which :func:`token_logprobs` would leave out.
    """
    tokens = torch.tensor([ids], device=model.device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    expected = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    everything = torch.ones_like(tokens, dtype=torch.bool)
    everything[:, 0] = False
    found, _ = token_logprobs(model, tokens, everything)
    gap = float((found - expected).abs().mean())
    if gap > HEAD_TOLERANCE:
        raise UserError(
            f"model.name: a {type(model).__name__} does not compute its logits as hidden states times the output "
            f"embedding (log-probabilities differ by {gap:.2g} nats); such models are not supported yet"
        )
