"""What fails or is interrupted half-way leaves nothing behind that is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sftrl_fast.core import UserError
from sftrl_fast.rollout.engine import NativeEngine, default_cache
from sftrl_fast.rollout.judge import Judge, _WholeVector
from sftrl_fast.rollout.request import Request, RequestKey, SamplingParams

PARAMS = SamplingParams(12)


def requests(count: int) -> list[Request]:
    return [Request([7, 3, item, 9], RequestKey(0, 0, item, 0, 0)) for item in range(count)]


def make(model: nn.Module) -> NativeEngine:
    return NativeEngine(model, frozenset(), max_sequences=8, cache_tokens=1024)


def small() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


@pytest.mark.parametrize("where", ["logits", "hidden"])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interrupted_step_loses_no_request(
    where: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    expected = make(model).generate(requests(5), PARAMS)
    engine = make(model)
    tickets = engine.submit(requests(5), PARAMS)
    answers = {}
    plain, calls = getattr(engine.decoder, where), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(engine.decoder, where, interrupted)
    interrupts = 0
    for _ in range(200):
        try:
            answers.update(engine.step())
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 1
    assert [answers[ticket].token_ids for ticket in tickets] == [answer.token_ids for answer in expected]
    assert engine.cache.free == engine.cache.pages


def test_an_exchanged_parameter_is_noticed() -> None:
    model = small()
    engine = make(model)
    before = engine.generate(requests(2), PARAMS)
    mlp = model.model.layers[0].mlp
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight.detach() * 3)
    after = engine.generate(requests(2), PARAMS)
    assert [a.logprobs for a in after] != [b.logprobs for b in before]
    assert [a.logprobs for a in after] == [b.logprobs for b in make(model).generate(requests(2), PARAMS)]
    assert after[0].weights_version == before[0].weights_version + 1


def test_a_model_of_another_type_is_refused() -> None:
    model = small()
    engine = make(model)
    engine.generate(requests(1), PARAMS)
    model.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"bfloat16 on cpu now and was torch.float32"):
        engine.generate(requests(1), PARAMS)


def test_weights_are_bound_again_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    engine = make(model)
    engine.generate(requests(1), PARAMS)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(2)
    with monkeypatch.context() as patch:
        patch.setattr(engine.decoder, "_bind", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.generate(requests(1), PARAMS)
    again = engine.generate(requests(1), PARAMS)
    assert again[0].logprobs == make(model).generate(requests(1), PARAMS)[0].logprobs


class ThreeRows:
    """A vector environment that is stepped whole; nobody is ever right."""

    num_envs = 3

    def reset(self, **_options: Any) -> Any:
        return ["?"] * 3, {}

    def step(self, answers: list[str]) -> Any:
        no = np.zeros(3, dtype=bool)
        return list(answers), np.zeros(3), no, no, {"success": no, "outcome": np.zeros(3, dtype=int)}

    def close(self) -> None: ...


def test_a_dialogue_that_leaves_does_not_hold_up_the_others() -> None:
    judge = Judge(_WholeVector(ThreeRows()))
    judge.reset(np.arange(3))
    judge.judge([0], ["a"])
    judge.judge([1], ["b"])
    assert judge.verdicts(wait=False) == []
    judge.leave([2])
    (judged,) = judge.verdicts(wait=True)
    assert (list(judged.rows), judged.observations) == ([0, 1], ["a", "b"])
    judge.close()


def test_answers_that_nobody_took_are_forgotten_with_their_tickets() -> None:
    engine = make(small())
    first, second = engine.submit(requests(2), PARAMS)
    engine.generate(requests(1), SamplingParams(40))
    assert engine.busy
    engine.cancel([first])
    assert [ticket for ticket, _ in engine.step()] == [second]
    assert not engine.busy


def test_the_default_cache_leaves_an_accelerator_half_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make(small()).decoder
    assert default_cache(decoder, 100) == 100 * 512
    monkeypatch.setattr(decoder, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**20, 2**21))
    assert default_cache(decoder, 100) == 2**19 // (2 * 2 * 2 * 8 * 4)
