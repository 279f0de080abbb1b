"""Dialogues with a toy task, by a scripted engine and by a random model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Text
from transformers import LlamaConfig, LlamaForCausalLM

from sftrl_fast.core import Group, UserError
from sftrl_fast.rollout.engine import NativeEngine
from sftrl_fast.rollout.episodes import run_episodes
from sftrl_fast.rollout.hf_backend import HFBackend
from sftrl_fast.rollout.request import BatchEngine, Completion, Engine, Request, RequestKey, SamplingParams

SINGLE, VECTOR = "toy/Letters-v0", "toy/LettersVector-v0"
RIGHT, WRONG = 0, 1
STOP, USER, MODEL = 1, 2, 3
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 "
OPEN: set[int] = set()


class Letters(gymnasium.Env[str, str]):
    """Item i wants the i-th letter; ``tries`` answers are allowed, and a hint follows a wrong one."""

    def __init__(self, tries: int = 3) -> None:
        self.observation_space = self.action_space = Text(100, min_length=0, charset=ALPHABET)
        self.tries = tries
        OPEN.add(id(self))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        assert options is not None
        self.index, self.left, self.over = int(options["index"]), self.tries, False
        return f"letter {self.index}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        assert not self.over, "a finished row was stepped again"
        self.left -= 1
        right = action == ALPHABET[self.index]
        self.over = right or self.left == 0
        info = {"success": right, "outcome": RIGHT if right else WRONG, "attempts_left": self.left}
        reward = 5.0 if right else -2.0 if self.over else -1.0
        return "" if self.over else f"not {action}", reward, right, self.over and not right, info

    def close(self) -> None:
        OPEN.discard(id(self))


class LettersVector(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """The same, batched: finished rows get the empty answer and are ignored."""

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int, tries: int = 3) -> None:
        self.num_envs = num_envs
        self.rows = [Letters(tries) for _ in range(num_envs)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        assert options is not None
        assert options["index"].shape == (self.num_envs,)
        self.last = [
            (*row.reset(options={"index": i}), False)
            for row, i in zip(self.rows, options["index"], strict=True)
        ]
        self.state = [(0.0, False, False, False, WRONG, 0)] * self.num_envs
        return tuple(message for message, _, _ in self.last), {}

    def step(self, actions: Sequence[str]) -> Any:
        assert len(actions) == self.num_envs
        messages = []
        for i, (row, action) in enumerate(zip(self.rows, actions, strict=True)):
            if row.over:
                assert action == ""
                self.state[i] = (0.0, *self.state[i][1:])
                messages.append("")
                continue
            message, reward, terminated, truncated, info = row.step(action)
            messages.append(message)
            self.state[i] = (reward, terminated, truncated, info["success"], info["outcome"], row.left)
        rewards, ends, cuts, success, outcome, left = (
            np.array(column) for column in zip(*self.state, strict=True)
        )
        infos = {"success": success, "outcome": outcome, "attempts_left": left}
        return tuple(messages), rewards, ends, cuts, infos

    def close_extras(self, **_kwargs: Any) -> None:
        for row in self.rows:
            row.close()


@pytest.fixture(autouse=True)
def _toy_tasks() -> Iterator[None]:
    single: Any = Letters
    vector: Any = LettersVector
    gymnasium.register(SINGLE, entry_point=single)
    gymnasium.register(VECTOR, entry_point=single, vector_entry_point=vector)
    yield
    del gymnasium.registry[SINGLE], gymnasium.registry[VECTOR]
    assert not OPEN, "environments were left open"


class ToyChat:
    """A token a character, offset by 10; 1 stops, 2 and 3 open the user's and the model's turns."""

    stop_ids = frozenset({STOP})

    def prompt_ids(self, user_text: str) -> list[int]:
        return [USER, *encode(user_text), MODEL]

    def reply_ids(self, user_text: str, *, stopped: bool) -> list[int]:
        return [*([] if stopped else [STOP]), USER, *encode(user_text), MODEL]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(ALPHABET[i - 10] for i in ids if i >= 10)


def encode(text: str) -> list[int]:
    return [10 + ALPHABET.index(letter) for letter in text]


class Scripted(BatchEngine):
    """Answers ``script[item][sample][turn]``; an answer ending in "-" was cut by the length limit."""

    def __init__(self, script: dict[int, list[list[str]]]) -> None:
        super().__init__()
        self.script = script
        self.calls: list[list[Request]] = []

    def generate(self, requests: Sequence[Request], params: Any) -> list[Completion]:
        assert params is PARAMS
        self.calls.append(list(requests))
        out = []
        for request in requests:
            answer = self.script[request.key.prompt][request.key.sample][request.key.turn]
            stopped = not answer.endswith("-")
            ids = encode(answer.rstrip("-")) + [STOP] * stopped
            out.append(Completion(ids, [-0.5] * len(ids), [-0.25] * len(ids), stopped))
        return out


SCRIPT = {4: [["e"], ["x", "yz-", "e"]], 0: [["x", "a"], ["x", "y", "z"]]}
PARAMS = SamplingParams(max_new_tokens=3)


def run(engine: Engine, env_id: str, items: Sequence[int], group_size: int = 2, **more: Any) -> list[Group]:
    settings: dict[str, Any] = {"params": PARAMS, "seed": 7, "step": 3, "env_kwargs": {}} | more
    return run_episodes(engine, ToyChat(), env_id, items, group_size=group_size, **settings)


@pytest.mark.parametrize("env_id", [SINGLE, VECTOR])
def test_groups_come_in_item_order_with_every_turn_recorded(env_id: str) -> None:
    groups = run(Scripted(SCRIPT), env_id, [4, 0])
    assert [group.index for group in groups] == [4, 0]
    assert [[episode.sample for episode in group.episodes] for group in groups] == [[0, 1], [0, 1]]
    assert [[episode.index for episode in group.episodes] for group in groups] == [[4, 4], [0, 0]]
    assert [[episode.reward for episode in group.episodes] for group in groups] == [[5, 3], [4, -4]]
    assert [[episode.success for episode in group.episodes] for group in groups] == [
        [True, True],
        [True, False],
    ]
    assert [[len(episode.turns) for episode in group.episodes] for group in groups] == [[1, 3], [2, 3]]
    turns = groups[0].episodes[1].turns
    assert [turn.text for turn in turns] == ["x", "yz", "e"]
    assert [turn.stopped for turn in turns] == [True, False, True]
    assert [turn.verdict.message for turn in turns] == ["not x", "not yz", ""]
    assert [turn.verdict.outcome for turn in turns] == [WRONG, WRONG, RIGHT]
    assert [turn.verdict.reward for turn in turns] == [-1, -1, 5]
    assert turns[0].logprobs == [-0.25, -0.25]  # under the distribution they were drawn from
    chat = ToyChat()
    assert turns[0].prompt_ids == chat.prompt_ids("letter 4")
    assert turns[1].prompt_ids == chat.reply_ids("not x", stopped=True)
    assert turns[2].prompt_ids == chat.reply_ids("not yz", stopped=False)


@pytest.mark.parametrize("env_id", [SINGLE, VECTOR])
def test_contexts_hold_the_tokens_of_all_turns_as_they_were_sampled(env_id: str) -> None:
    engine = Scripted(SCRIPT)
    groups = run(engine, env_id, [4, 0])
    assert [len(call) for call in engine.calls] == [4, 3, 2]
    for turn, call in enumerate(engine.calls):
        for request in call:
            key = request.key
            assert (key.seed, key.step, key.turn) == (7, 3, turn)
            (episode,) = [
                e for g in groups for e in g.episodes if (e.index, e.sample) == (key.prompt, key.sample)
            ]
            expected: list[int] = []
            for earlier in episode.turns[:turn]:
                expected += earlier.prompt_ids + earlier.answer_ids
            assert request.context == expected + episode.turns[turn].prompt_ids


def test_turns_do_not_share_their_lists() -> None:
    script = {0: [["x", "x", "a"]] * 3}
    (group,) = run(Scripted(script), VECTOR, [0], group_size=3)
    lists = [id(turn.prompt_ids) for episode in group.episodes for turn in episode.turns]
    assert len(set(lists)) == len(lists)


@pytest.mark.parametrize("env_id", [SINGLE, VECTOR])
def test_a_dialogue_that_outgrows_the_context_ends_there(env_id: str) -> None:
    # First prompt 10 tokens; with "x", stop and a reply of 7 it is 19; after another round 28, plus 3 new 31.
    long_enough = run(Scripted(SCRIPT), env_id, [0], max_context=31)
    assert [len(episode.turns) for episode in long_enough[0].episodes] == [2, 3]
    short = run(Scripted(SCRIPT), env_id, [0], max_context=30)
    assert [len(episode.turns) for episode in short[0].episodes] == [2, 2]
    assert [episode.success for episode in short[0].episodes] == [True, False]
    assert short[0].episodes[1].turns[-1].verdict.message == "not y"


def test_a_first_prompt_that_does_not_fit_raises_before_anything_is_generated() -> None:
    engine = Scripted(SCRIPT)
    with pytest.raises(UserError, match=r"max_context is 12; .*item 4 .* 10 tokens .* at least 13"):
        run(engine, VECTOR, [4, 0], max_context=12)
    assert engine.calls == []
    assert run(engine, VECTOR, [4, 0], max_context=13)


def test_keywords_reach_the_environment() -> None:
    for env_id in (SINGLE, VECTOR):
        (group,) = run(Scripted(SCRIPT), env_id, [0], env_kwargs={"tries": 1})
        assert [len(episode.turns) for episode in group.episodes] == [1, 1]


def test_bad_arguments_raise_and_no_items_are_no_groups() -> None:
    engine = Scripted(SCRIPT)
    assert run(engine, SINGLE, []) == []
    with pytest.raises(UserError, match="env_id is 'toy/Nothing-v0'"):
        run(engine, "toy/Nothing-v0", [0])
    with pytest.raises(UserError, match="group_size is 0"):
        run(engine, SINGLE, [0], group_size=0)


def test_what_ended_without_the_templates_token_gets_it() -> None:
    class Cut(Scripted):
        """Says of every answer that it stopped, as a request's own stop string would."""

        def generate(self, requests: Sequence[Request], params: Any) -> list[Completion]:
            return [dataclasses.replace(c, stopped=True) for c in super().generate(requests, params)]

    (group,) = run(Cut({0: [["x", "y-", "z"]]}), SINGLE, [0], group_size=1)
    first, second, third = group.episodes[0].turns
    assert first.answer_ids[-1] == STOP
    assert second.prompt_ids[0] == USER
    assert second.answer_ids == encode("y")
    assert third.prompt_ids[0] == STOP


def test_an_engine_with_other_work_is_refused() -> None:
    engine = Scripted(SCRIPT)
    engine.submit([Request([1], RequestKey(0, 0, 4, 0, 0))], PARAMS)
    with pytest.raises(UserError, match="requests under way"):
        run(engine, SINGLE, [0])
    engine.step()
    assert run(engine, SINGLE, [0])


def test_environments_are_closed_when_the_engine_fails() -> None:
    for env_id in (SINGLE, VECTOR):
        with pytest.raises(KeyError):
            run(Scripted({}), env_id, [0])
        assert not OPEN


@pytest.mark.parametrize("native", [False, True])
def test_a_random_model_plays_the_same_episode_in_any_company(native: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=10 + len(ALPHABET),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    engine: Engine = HFBackend(model, frozenset({STOP}), 0, max_sequences=8)
    if native:
        engine = NativeEngine(model, frozenset({STOP}), max_sequences=8, cache_tokens=2000)
    whole = run(engine, VECTOR, [4, 0, 7], max_context=128, params=SamplingParams(6))
    (alone,) = run(engine, SINGLE, [0], max_context=128, params=SamplingParams(6))
    answers = [[turn.answer_ids for turn in episode.turns] for episode in alone.episodes]
    assert answers == [[turn.answer_ids for turn in episode.turns] for episode in whole[1].episodes]
    assert answers[0] != answers[1]
    tokens = sum(len(turn.answer_ids) for g in [*whole, alone] for e in g.episodes for turn in e.turns)
    assert engine.counters.decode_tokens == tokens
