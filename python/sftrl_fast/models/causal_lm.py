"""Token log-probabilities of a transformers causal model, without ever holding the logits."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from sftrl_fast.ops.logprob import logprob

CausalLM = PreTrainedModel
"""What the trainer handles: any transformers model with a decoder and an output embedding."""


def token_logprobs(model: CausalLM, ids: Tensor, trained: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of the trained tokens, float32 ``[T]`` each, in row order.

    ids: int64 ``[B, L]``, rows padded on the right. Padding follows every real token, so causal attention
    needs no mask. trained: bool ``[B, L]``; column 0 must be False, since nothing predicts a row's first token.
    """
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    target = trained[:, 1:]
    return logprob(hidden[:, :-1][target], model.get_output_embeddings().weight, ids[:, 1:][target])
