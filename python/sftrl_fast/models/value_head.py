"""A critic on the policy's own last hidden state: one number for a dialogue in which the model is about to answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftrl_fast.models.causal_lm import CausalLM
from sftrl_fast.models.forward_pass import hidden_states
from sftrl_fast.models.packed import PackedTokens
from sftrl_fast.ops.logprob import logprob


class ValueHead(nn.Module):
    """A linear map in float32 whatever the model's type. It begins at 0, which expects nothing of any state."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        width = model.get_output_embeddings().weight.shape[1]
        self.linear = nn.Linear(width, 1, device=model.device, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[N, D]`` -> float32 ``[N]``."""
        values: Tensor = self.linear(hidden.float())
        return values.squeeze(-1)


def logprobs_and_values(
    model: CausalLM, head: ValueHead, tokens: PackedTokens, first: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability and entropy of ``tokens.targets``, ``[N]``, and the value before each of ``first``; float32.

    ``first`` are places in ``tokens.targets``, int64: the first token of each answer. The value is taken where that
    token is predicted from, so it knows the question and nothing of the answer.
    """
    hidden = hidden_states(model, tokens)
    weight = model.get_output_embeddings().weight
    logp, entropy = logprob(hidden, weight, tokens.targets, temperature=temperature)
    return logp, entropy, head(hidden[first])
