from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sftrl_fast.config import SFTConfig
from sftrl_fast.core import Row
from sftrl_fast.evaluate import task_env
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.runtime.compute import Compute
from sftrl_fast.train.guard import Guard
from sftrl_fast.train.optimizer import Optimizer
from sftrl_fast.train.sft import Demonstrations, SFTArm, cross_entropy_step, loss_step

TRAIN = "sftrl/points-text-train-v1"


def _rows(tiny: LanguageModel, count: int) -> list[Row]:
    demonstrations = Demonstrations(task_env(TRAIN, {}), tiny.chat, SFTConfig(batch=count), "seed0/sft")
    return demonstrations.batch(0)


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradient_do_not_depend_on_the_cut(tiny: LanguageModel) -> None:
    rows = _rows(tiny, 12)
    results = []
    for max_tokens in (64, 100_000):
        model = copy.deepcopy(tiny.model).double()
        step = cross_entropy_step(model, rows, max_tokens)
        results.append((step.loss, step.entropy, _gradients(model)))
    (loss, entropy, one), (other_loss, other_entropy, other) = results
    assert loss == pytest.approx(other_loss, rel=1e-6)
    assert entropy == pytest.approx(other_entropy, rel=1e-6)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-5, atol=1e-8)


def test_loss_is_transformers_own_on_the_answer_tokens(tiny: LanguageModel) -> None:
    model = copy.deepcopy(tiny.model)
    row = _rows(tiny, 1)[0]
    labels = [token if on else -100 for token, on in zip(row.ids, row.trained, strict=True)]
    expected = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss
    assert cross_entropy_step(model, [row], 1000).loss == pytest.approx(float(expected), rel=1e-4)


def test_demonstrations_stay_fixed_unless_resampled(tiny: LanguageModel) -> None:
    env = task_env("sftrl/points-text-validation-v1", {})
    batch = env.num_items
    for resample in (False, True):
        rows = Demonstrations(env, tiny.chat, SFTConfig(batch=batch, resample=resample), "seed0/sft")
        first, second = ({tuple(row.ids) for row in rows.batch(epoch)} for epoch in (0, 1))
        assert (first == second) is not resample


def _arm(tiny: LanguageModel, folder: Path, **keys: Any) -> SFTArm:
    config = SFTConfig(batch=6, lr=1e-3, **keys)
    language = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer, tiny.chat)
    demonstrations = Demonstrations(task_env(TRAIN, {}), tiny.chat, config, "seed0/sft")
    compute = Compute(language.num_parameters)
    return SFTArm(
        language, demonstrations, Optimizer(language.model, config), 500, compute, Guard(folder / "skipped")
    )


def test_dft_weighs_each_token_by_its_probability(tiny: LanguageModel) -> None:
    rows = _rows(tiny, 3)
    model = copy.deepcopy(tiny.model)
    found = loss_step(model, rows, 1000, "dft")
    gradients = _gradients(model)
    model.zero_grad()
    logps = []
    for row in rows:
        ids = torch.tensor([row.ids])
        each = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        logps.append(each[torch.tensor(row.trained[1:])])
    logp = torch.cat(logps)
    (-logp.detach().exp() * logp).mean().backward()
    assert found.nll == pytest.approx(-float(logp.detach().mean()), rel=1e-4)
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6)


def test_psft_stays_near_where_the_batch_began(tiny: LanguageModel, tmp_path: Path) -> None:
    gains = {}
    for loss, clip in (("cross_entropy", 0.0), ("psft", 0.01)):
        arm = _arm(tiny, tmp_path, loss=loss, passes=6, clip=clip)
        before = cross_entropy_step(arm.language.model, arm.demonstrations.batch(0), 500).nll
        arm.optimizer.discard()
        gains[loss] = before - arm.update(0, 0.0)["nll"]
        assert arm.compute.samples == 6 * 6
        assert arm.optimizer.steps == 6
    # Six passes at this rate raise the likelihood by far more than a hundredth a token.
    assert 0 < gains["psft"] < 0.3 * gains["cross_entropy"]
