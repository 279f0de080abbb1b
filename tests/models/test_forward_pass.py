"""Which code trains is one choice: an explicit one never falls back, and goes with the model's copies."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from sftrl_fast.config import load_config
from sftrl_fast.core import UserError
from sftrl_fast.evaluate import load_configured
from sftrl_fast.models import forward_pass
from sftrl_fast.models.forward_pass import choose_pass, set_pass


def llama(**changes: Any) -> Any:
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, **changes))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (llama().double(), "op linear runs on torch for torch.float64"),
        (llama(head_dim=12), "its heads are 12 wide"),
        (llama(attention_dropout=0.5).train(), "it drops attention weights"),
        (llama(hidden_act="gelu"), "its activation is 'gelu'"),
    ],
)
def test_native_that_cannot_be_is_an_error_and_auto_says_why(
    model: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=f"compute.trainer='native' does not cover the model: {reason}"):
        set_pass(model, "native")
    set_pass(model, "auto")
    forward_pass._logged.clear()
    with caplog.at_level(logging.INFO):
        assert choose_pass(model) == choose_pass(model) == "transformers"
    assert caplog.text.count("training of a LlamaForCausalLM: transformers (auto; not native: ") == 1
    assert reason in caplog.text


def test_the_choice_goes_with_a_copy_and_into_no_file(tmp_path: Any) -> None:
    model = llama()
    set_pass(model, "transformers")
    assert choose_pass(copy.deepcopy(model)) == "transformers"
    model.save_pretrained(tmp_path)
    assert choose_pass(LlamaForCausalLM.from_pretrained(tmp_path)) == "native"


@pytest.mark.parametrize("wanted", ["native", "transformers"])
def test_the_configuration_chooses(wanted: str) -> None:
    language = load_configured(load_config(overrides={"compute.trainer": wanted, "model.device": "cpu"}))
    assert choose_pass(language.model) == wanted
