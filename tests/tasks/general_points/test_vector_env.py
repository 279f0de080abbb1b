"""The batched form is the scalar form, row by row."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast.core import UserError

OOD = "sftrl/points-text-rule-ood-v1"
ROWS, TURNS = 3, 3
NUM_ITEMS = 796

formulas = st.text(alphabet="0123456789+-*/() =", max_size=24)
answers = st.one_of(
    st.sampled_from(["right", "miss", "short"]),
    formulas.map('{{"cards": ["A"], "formula": "{}"}}'.format),
    st.text(max_size=40),
)


def written(env: Any, index: int, answer: str) -> str:
    """``answer``, or the answer to item ``index`` that it is a word for."""
    numbers = list(map(str, env.rule.numbers(env.items[index].tolist())))
    words = {
        "right": env.demonstration(index),
        "miss": f'"formula": "{"-".join(numbers)}"',
        "short": f'"formula": "{"+".join(numbers[:3])}"',
    }
    return words.get(answer, answer)


@settings(max_examples=60, deadline=None)
@given(
    indices=st.lists(st.integers(0, NUM_ITEMS - 1), min_size=ROWS, max_size=ROWS),
    script=st.lists(st.lists(answers, min_size=ROWS, max_size=ROWS), min_size=TURNS, max_size=TURNS),
    rewards=st.sampled_from(["exact", "reference"]),
)
def test_rows_equal_the_scalar_environment(indices: list[int], script: list[list[str]], rewards: str) -> None:
    envs = gymnasium.make_vec(OOD, num_envs=ROWS, verify_iter=TURNS, rewards=rewards)
    singles = [gymnasium.make(OOD, verify_iter=TURNS, rewards=rewards) for _ in range(ROWS)]
    observations, infos = envs.reset(options={"index": np.array(indices)})
    expected = [env.reset(options={"index": index}) for env, index in zip(singles, indices, strict=True)]
    assert observations == tuple(observation for observation, _ in expected)
    assert infos["attempts_left"].tolist() == [info["attempts_left"] for _, info in expected]
    over = [False] * ROWS
    for turn in script:
        actions = [written(singles[row], indices[row], turn[row]) for row in range(ROWS)]
        observations, reward, terminated, truncated, infos = envs.step(actions)
        for row, env in enumerate(singles):
            if over[row]:
                assert (observations[row], reward[row]) == ("", 0.0)
                assert terminated[row] or truncated[row]
                continue
            step = env.step(actions[row])
            assert (observations[row], reward[row], terminated[row], truncated[row]) == step[:4]
            for key in ("success", "outcome", "attempts_left", "cards_ok", "index"):
                assert infos[key][row] == step[4][key]
            for name, value in step[4]["reward_parts"].items():
                assert infos["reward_parts"][name][row] == value
            numerator, denominator = infos["value"][row]
            assert (f"{numerator}/{denominator}" if denominator else None) == step[4]["value"]
            over[row] = step[2] or step[3]


def two_rows(**keywords: Any) -> Any:
    envs = gymnasium.make_vec(OOD, num_envs=2, **keywords)
    envs.reset(options={"index": [4, 4]})
    return envs


def test_a_finished_row_is_ignored_and_keeps_what_it_reached() -> None:
    envs = two_rows(verify_iter=3)
    _, rewards, terminated, _, first = envs.step([envs.demonstration(4), "?"])
    assert rewards.tolist() == [5.0, -3.0]
    assert terminated.tolist() == [True, False]
    observations, rewards, terminated, truncated, second = envs.step(["rubbish", "?"])
    assert observations[0] == ""
    assert rewards.tolist() == [0.0, -3.0]
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, False])
    assert second["success"].tolist() == [True, False]
    assert second["outcome"][0] == first["outcome"][0]
    assert second["attempts_left"].tolist() == [2, 1]
    _, rewards, terminated, truncated, _ = envs.step(["", "?"])
    assert rewards.tolist() == [0.0, -4.0]
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, True])
    observations, rewards, *_ = envs.step(["", ""])
    assert (observations, rewards.tolist()) == (("", ""), [0.0, 0.0])


def test_what_a_step_returns_is_not_changed_by_the_next() -> None:
    envs = two_rows(verify_iter=2)
    _, rewards, terminated, truncated, infos = envs.step(["?", "?"])
    given = (rewards, terminated, truncated, *infos.pop("reward_parts").values(), *infos.values())
    kept = [value.copy() for value in given]
    envs.step([envs.demonstration(4), "?"])
    for value, copy in zip(given, kept, strict=True):
        assert (value == copy).all()


def test_types_and_shapes() -> None:
    envs = two_rows()
    observations, rewards, terminated, truncated, infos = envs.step(["?", "?"])
    assert envs.observation_space.contains(observations)
    assert (rewards.dtype, rewards.shape) == (np.float64, (2,))
    assert (terminated.dtype, truncated.dtype, infos["success"].dtype) == (np.bool_,) * 3
    assert (infos["outcome"].dtype, infos["attempts_left"].dtype) == (np.int64, np.int64)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED


def test_reset_starts_every_row_anew() -> None:
    envs = two_rows(verify_iter=1)
    envs.step(["?", "?"])
    observations, infos = envs.reset(options={"index": [1, 2]})
    assert infos["attempts_left"].tolist() == [1, 1]
    assert observations == (envs.question(1), envs.question(2))
    assert envs.step([envs.demonstration(1), envs.demonstration(2)])[1].tolist() == [5.0, 5.0]


def test_one_seed_one_batch() -> None:
    envs = gymnasium.make_vec(OOD, num_envs=64)
    first = envs.reset(seed=7)
    assert first[0] == envs.reset(seed=7)[0]
    assert first[0] != envs.reset(seed=8)[0]
    assert len(set(first[1]["index"].tolist())) > 32


def test_gymnasiums_own_vector_forms_take_the_scalar_environment() -> None:
    envs = gymnasium.make_vec(OOD, num_envs=2, vectorization_mode="sync", verify_iter=2)
    observations, _ = envs.reset(seed=3, options={"index": 4})
    assert observations[0] == observations[1]
    _, rewards, *_ = envs.step(("?", "?"))
    assert rewards.tolist() == [-3.0, -3.0]


def test_step_needs_a_reset() -> None:
    with pytest.raises(gymnasium.error.ResetNeeded):
        gymnasium.make_vec(OOD, num_envs=2).step(["", ""])


@pytest.mark.parametrize("actions", [["?"], ["?", "?", "?"], "??"])
def test_one_answer_a_row(actions: Any) -> None:
    with pytest.raises(UserError, match="2 strings"):
        two_rows().step(actions)


def test_an_answer_that_is_no_string_is_named() -> None:
    with pytest.raises(UserError, match=r"answers\[1\]=None"):
        two_rows().step(["?", None])


@pytest.mark.parametrize("index", [4, [4], [4, NUM_ITEMS], [4, -1], [0.0, 1.0], [True, False], ["a", "b"]])
def test_bad_indices_are_refused(index: Any) -> None:
    with pytest.raises(UserError, match="index"):
        gymnasium.make_vec(OOD, num_envs=2).reset(options={"index": index})


@pytest.mark.parametrize("num_envs", [0, -1, 2.0, True])
def test_bad_row_counts_are_refused(num_envs: Any) -> None:
    with pytest.raises(UserError, match="num_envs"):
        gymnasium.make_vec(OOD, num_envs=num_envs)
