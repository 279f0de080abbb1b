from __future__ import annotations

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM

from sftrl_fast.core import UserError
from sftrl_fast.models.causal_lm import check_head, token_logprobs
from sftrl_fast.models.load import load


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_the_models_own_logits(temperature: float) -> None:
    model = load("tiny", device="cpu").model
    ids = torch.randint(0, 500, (3, 12), generator=torch.Generator().manual_seed(0))
    trained = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    trained[:, 0] = False
    expected = (model(input_ids=ids).logits[:, :-1] / temperature).log_softmax(-1)
    expected = expected.gather(2, ids[:, 1:, None])[..., 0][trained[:, 1:]]
    found, _ = token_logprobs(model, ids, trained, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_scales_its_logits_is_refused() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CohereConfig(vocab_size=64, num_key_value_heads=2, logit_scale=4.0, **sizes)
    with pytest.raises(UserError, match="CohereForCausalLM"):
        check_head(CohereForCausalLM(config), [1, 2, 3, 4])
    check_head(load("tiny", device="cpu").model, [1, 2, 3, 4])
