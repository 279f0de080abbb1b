"""Tasks whose items take several answers: demonstrations, episodes and rates."""

from __future__ import annotations

from collections.abc import Sequence

from sftrl_fast.core import Message
from sftrl_fast.evaluate import task_env
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import SamplingParams
from sftrl_fast.train.pack import dialogue_row
from sftrl_fast.train.sft import played

ROUTES = "sftrl/navigation-text-absolute-vln-mini-v1"
CARDS = "sftrl/points-text-id-v1"


def test_a_demonstration_is_played_through_the_environment(tiny: LanguageModel) -> None:
    env = task_env(ROUTES, {"verify_iter": 2})
    answers = env.demonstration(4)
    assert isinstance(answers, Sequence)
    dialogue = played(env, 4, 0)
    assert [message.text for message in dialogue[1::2]] == list(answers)
    assert [message.text.split(": ")[0] for message in dialogue[2::2]] == [
        f"O_{place}" for place in range(2, len(answers) + 1)
    ]
    row = dialogue_row(tiny.chat, dialogue)
    assert sum(row.trained) == sum(len(tiny.chat.answer_ids(answer)) for answer in answers)


def test_one_answer_makes_a_dialogue_of_two_turns() -> None:
    env = task_env(CARDS, {})
    observation, _ = env.reset(options={"index": 3})
    assert played(env, 3, 0) == [
        Message("user", observation),
        Message("assistant", str(env.demonstration(3))),
    ]


def test_every_answer_is_told_right_or_wrong_and_first_or_not(tiny: LanguageModel) -> None:
    """The shipped model knows cards alone: each point takes both tries, until the context is full."""
    engine = HFBackend(tiny.model, tiny.chat.stop_ids, 0, max_sequences=8)
    groups = run_episodes(
        engine, tiny.chat, ROUTES, [0, 1], group_size=2, params=SamplingParams(4, 0.7), seed=0, step=0,
        env_kwargs={"verify_iter": 2}, max_context=800,
    )  # fmt: skip
    for group in groups:
        for episode in group.episodes:
            verdicts = [turn.verdict for turn in episode.turns]
            assert len(verdicts) >= 2
            assert [verdict.first_try for verdict in verdicts] == [i % 2 == 0 for i in range(len(verdicts))]
            assert not any(verdict.right for verdict in verdicts)
            assert [verdict.reward for verdict in verdicts[:2]] == [-1.0, -2.0]
