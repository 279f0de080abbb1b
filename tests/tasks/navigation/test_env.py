"""One walk at a time, and many: the contract, rewards over an episode, bad input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sftrl_fast.core import TaskEnv, UserError
from sftrl_fast.tasks import NAVIGATION_TASKS
from sftrl_fast.tasks.navigation import prompt
from sftrl_fast.tasks.navigation.env import NavigationEnv
from sftrl_fast.tasks.navigation.sets import write_sets
from sftrl_fast.tasks.navigation.vector_env import NavigationVectorEnv
from sftrl_fast.tasks.navigation.verifier import Outcome

ID = "sftrl/navigation-text-absolute-vln-mini-v1"
SHIFTED = "sftrl/navigation-text-relative-vln-mini-v1"
TEXT_IDS = [row.id for row in NAVIGATION_TASKS if row.look == "text"]
WRONG = prompt.answer("No landmarks nearby", "", "nothing()")


def make(env_id: str = ID, **keywords: Any) -> NavigationEnv:
    env = gymnasium.make(env_id, **keywords)
    assert isinstance(env, NavigationEnv)
    return env


@pytest.mark.parametrize("env_id", TEXT_IDS)
def test_check_env_finds_nothing_to_say(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(env_id)
        check_env(env)
        envs = gymnasium.make_vec(env_id, num_envs=3)
    assert type(env) is NavigationEnv
    assert type(envs) is NavigationVectorEnv
    assert isinstance(env, TaskEnv)
    assert isinstance(envs, TaskEnv)
    assert envs.observation_space.contains(envs.reset(seed=0)[0])
    envs.step(envs.action_space.sample())


@pytest.mark.parametrize("env_id", [ID, SHIFTED])
def test_the_expert_walks_every_route_to_its_end(env_id: str) -> None:
    env = make(env_id)
    for index in range(env.num_items):
        observation, info = env.reset(options={"index": index})
        answers = env.demonstration(index)
        assert len(answers) == info["points"]
        for place, answer in enumerate(answers):
            assert observation.endswith(f"A_{place + 1}:")
            assert info["point"] == place
            observation, reward, terminated, truncated, info = env.step(answer)
            assert (reward, truncated, terminated) == (1.0, False, place == len(answers) - 1)
            assert info["right"]
            assert info["first_try"]
            assert info["success"] == terminated
        assert observation == ""


def test_the_question_holds_instructions_actions_and_the_first_observation() -> None:
    env = make(SHIFTED)
    observation, info = env.reset(options={"index": 3})
    rail = env.rail(3)
    for number, line in enumerate(rail.instructions, start=1):
        assert f"\n{number}. {line}\n" in observation
    assert "where x is one of left, right, slightly left, slightly right.\n" in observation
    assert "O_1: No landmarks nearby\nA_1:" in observation
    assert (info["language"], info["instruction"], info["attempts_left"]) == ("relative", 1, 2)


def test_a_wrong_answer_gets_the_verifiers_words_and_another_try() -> None:
    env = make()
    env.reset(options={"index": 0})
    observation, reward, terminated, truncated, info = env.step(WRONG)
    assert (reward, terminated, truncated) == (-1.0, False, False)
    assert observation == prompt.revision(info["message"])
    assert info["message"] in observation
    assert (info["point"], info["attempts_left"], info["outcome"]) == (0, 1, Outcome.FOREIGN_ACTION)
    _, reward, _, _, info = env.step(env.demonstration(0)[0])
    assert (reward, info["point"], info["right"], info["first_try"]) == (1.0, 1, True, False)


def test_when_tries_run_out_the_rail_moves_on_and_the_route_has_failed() -> None:
    env = make()
    env.reset(options={"index": 0})
    answers = env.demonstration(0)
    assert env.step(WRONG)[1] == -1.0
    observation, reward, terminated, truncated, info = env.step(WRONG)
    assert (reward, terminated, truncated, info["point"]) == (-2.0, False, False, 1)
    action = env.rail(0).steps[0].action
    assert observation.startswith(f"A_1 was {action}.\nO_2: ")
    assert info["attempts_left"] == 2
    for answer in answers[1:]:
        _, reward, terminated, truncated, info = env.step(answer)
        assert reward == 1.0
    assert (terminated, truncated, info["success"]) == (False, True, False)


def test_second_tries_leave_the_route_a_success() -> None:
    env = make(verify_iter=3)
    env.reset(options={"index": 1})
    for answer in env.demonstration(1):
        env.step(WRONG)
        env.step(WRONG)
        _, _, terminated, _, info = env.step(answer)
    assert terminated
    assert info["success"]


@pytest.mark.parametrize("verify_iter", [1, 2, 4])
def test_the_last_point_may_fail_too(verify_iter: int) -> None:
    env = make(verify_iter=verify_iter)
    env.reset(options={"index": 2})
    answers = env.demonstration(2)
    for answer in answers[:-1]:
        env.step(answer)
    turns = [env.step(WRONG) for _ in range(verify_iter)]
    assert [turn[1] for turn in turns] == [-1.0] * (verify_iter - 1) + [-2.0]
    assert [turn[3] for turn in turns] == [False] * (verify_iter - 1) + [True]
    assert turns[-1][0] == ""
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(answers[-1])


def test_rows_are_the_same_as_single_walks() -> None:
    rng = np.random.default_rng(0)
    envs = gymnasium.make_vec(SHIFTED, num_envs=12)
    singles = [make(SHIFTED) for _ in range(12)]
    indices = rng.integers(18, size=12)
    indices[1] = indices[0]
    observations, _ = envs.reset(options={"index": indices})
    assert observations == tuple(
        env.reset(options={"index": int(i)})[0] for env, i in zip(singles, indices, strict=True)
    )
    live = np.ones(12, dtype=bool)
    place = np.zeros(12, dtype=np.int64)
    answers = [singles[0].demonstration(int(i)) for i in indices]
    for turn in range(100):
        given = [a[p] if rng.random() < 0.7 else WRONG for a, p in zip(answers, place, strict=True)]
        rows = np.flatnonzero(live & (rng.random(12) < 0.8)) if turn % 2 else np.arange(12)
        results = envs.step_rows(rows, [given[r] for r in rows]) if turn % 2 else envs.step(given)
        for entry, row in enumerate(rows.tolist()):
            if not live[row]:
                assert results[0][entry] == ""
                assert results[1][entry] == 0.0
                continue
            observation, reward, terminated, truncated, info = singles[row].step(given[row])
            assert (observation, reward, terminated, truncated) == tuple(part[entry] for part in results[:4])
            for key in ("success", "right", "first_try", "outcome", "attempts_left", "point", "index"):
                assert info[key] == results[4][key][entry]
            live[row], place[row] = not (terminated or truncated), info["point"]
        if not live.any():
            return
    pytest.fail("walks do not end")


def test_one_seed_one_deal_and_index_wins() -> None:
    first, second = make(), make()
    drawn = [first.reset(seed=seed)[1]["index"] for seed in range(40)]
    assert drawn == [second.reset(seed=seed)[1]["index"] for seed in range(40)]
    assert len(set(drawn)) > 10
    assert first.reset(seed=1, options={"index": 9})[1]["index"] == 9


def test_strata_are_cities_and_lengths_and_every_route_is_a_question() -> None:
    env = make("sftrl/navigation-text-absolute-cities-v1")
    assert env.strata().shape == env.questions().shape == (250,)
    assert len(set((env.strata() // 4).tolist())) == 9
    assert len(set(env.questions().tolist())) == 250


def test_published_headings_change_instructions_and_actions() -> None:
    published = make(SHIFTED, headings="reference")
    ours = make(SHIFTED)
    assert any(published.rail(i).instructions != ours.rail(i).instructions for i in range(18))
    assert any(published.demonstration(i) != ours.demonstration(i) for i in range(18))


def test_routes_come_from_a_folder(tmp_path: Path) -> None:
    write_sets(tmp_path)
    assert make(data=str(tmp_path)).reset(options={"index": 5})[0] == make().reset(options={"index": 5})[0]
    with pytest.raises(UserError, match=r"holds no vln-mini\.jsonl"):
        make(data=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"verify_iter": 0}, "verify_iter=0 .*at least 1"),
        ({"verify_iter": True}, "verify_iter=True"),
        ({"rewards": "paper"}, "rewards='paper'.*exact, reference"),
        ({"headings": "plain"}, "headings='plain'.*wrapped, reference"),
        ({"routes": "all"}, "routes='all'.*train, validation, test, cities, vln-mini"),
        ({"language": "french"}, "language='french'.*absolute, relative"),
        ({"target": 24}, "target=24 .*verify_iter, rewards"),
        ({"data": 3}, "data=3"),
    ],
)
@pytest.mark.parametrize("maker", [gymnasium.make, gymnasium.make_vec])
def test_a_bad_keyword_is_named_with_what_would_be_right(maker: Any, keywords: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        maker(ID, **keywords)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"index": -1}, "from 0 to 17"),
        ({"index": 18}, "18"),
        ({"index": 1.0}, "index"),
        ({"item": 1}, "item.*index"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make().reset(options=options)


@pytest.mark.parametrize("answer", [None, 24, b"forward()"])
def test_an_answer_is_a_string(answer: Any) -> None:
    env, envs = make(), gymnasium.make_vec(ID, num_envs=2)
    env.reset(options={"index": 0})
    envs.reset(seed=0)
    with pytest.raises(UserError, match="answer="):
        env.step(answer)
    with pytest.raises(UserError, match=r"answers\[1\]="):
        envs.step(["", answer])
    with pytest.raises(UserError, match="must be 2 strings"):
        envs.step([""])


def test_steps_need_a_walk_under_way() -> None:
    with pytest.raises(gymnasium.error.ResetNeeded):
        make().step("")
    with pytest.raises(gymnasium.error.ResetNeeded):
        gymnasium.make_vec(ID, num_envs=2).step(["", ""])
