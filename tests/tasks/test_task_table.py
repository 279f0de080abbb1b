"""The table of ids: what Gymnasium makes of each row."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sftrl_fast.core import TaskEnv
from sftrl_fast.tasks import TASKS, register
from sftrl_fast.tasks.general_points.env import GeneralPointsEnv
from sftrl_fast.tasks.general_points.vector_env import GeneralPointsVectorEnv
from sftrl_fast.tasks.spaces import AnyText

IDS = [row.id for row in TASKS]


@pytest.mark.parametrize("env_id", IDS)
def test_check_env_finds_nothing_to_say(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(env_id))


@pytest.mark.parametrize("env_id", IDS)
def test_make_hands_out_the_environment_itself(env_id: str) -> None:
    env = gymnasium.make(env_id)
    assert type(env) is GeneralPointsEnv
    assert isinstance(env, TaskEnv)


@pytest.mark.parametrize("env_id", IDS)
def test_make_vec_uses_the_batched_form(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gymnasium.make_vec(env_id, num_envs=3)
    assert type(envs) is GeneralPointsVectorEnv
    assert isinstance(envs, TaskEnv)
    observations, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observations)
    envs.step(envs.action_space.sample())


def test_a_second_registration_changes_nothing() -> None:
    before = {env_id: gymnasium.spec(env_id) for env_id in IDS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register()
    assert all(gymnasium.spec(env_id) is spec for env_id, spec in before.items())


def test_making_an_environment_does_not_import_torch() -> None:
    program = (
        "import sys, gymnasium, sftrl_fast\n"
        f"gymnasium.make({IDS[0]!r}), gymnasium.make_vec({IDS[0]!r}, num_envs=2)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_ids_are_versioned_and_distinct() -> None:
    assert len(set(IDS)) == len(IDS)
    assert all(gymnasium.spec(env_id).version == 1 for env_id in IDS)


@pytest.mark.parametrize("text", ["", "24", "x" * 100_000, "\ud800", "\0", "四張牌"])
def test_any_text_is_an_answer(text: str) -> None:
    assert AnyText().contains(text)
    env = gymnasium.make(IDS[0])
    env.reset(seed=0)
    observation, *_ = env.step(text)
    assert env.observation_space.contains(observation)


def test_samples_of_text_obey_the_seed() -> None:
    first, second = AnyText(seed=3), AnyText(seed=3)
    drawn = [first.sample() for _ in range(20)]
    assert drawn == [second.sample() for _ in range(20)]
    assert len(set(drawn)) > 10


def test_numbers_are_no_text() -> None:
    assert not AnyText().contains(np.float64(24))
    assert not AnyText().contains(b"24")
