"""One hand at a time: the contract, the rewards over an episode, bad input."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from sftrl_fast.core import UserError
from sftrl_fast.tasks.general_points import prompt
from sftrl_fast.tasks.general_points.verifier import Outcome

ID = "sftrl/points-text-id-v1"
OOD = "sftrl/points-text-rule-ood-v1"


def make(env_id: str = ID, **keywords: Any) -> Any:
    return gymnasium.make(env_id, **keywords)


def formula(text: str) -> str:
    return f'{{"cards": [], "number": [], "formula": "{text}"}}'


def wrong_value(env: Any, index: int) -> str:
    """A legal formula over the item's numbers that misses the target."""
    numbers = env.rule.numbers(env.items[index].tolist())
    text = "-".join(map(str, numbers))
    assert numbers[0] - sum(numbers[1:]) != env.target
    return formula(text)


def test_reset_asks_the_item_and_tells_its_facts() -> None:
    env = make(OOD)
    observation, info = env.reset(options={"index": 7})
    ranks = env.items[7].tolist()
    assert observation == prompt.question(ranks, env.rule, 24)
    assert all(f'"{name}"' in observation for name in info["cards"])
    assert info["numbers"] == [int(rank) for rank in ranks]  # under 11, 12, 13 a rank counts as itself
    assert (info["index"], info["rule"], info["target"], info["attempts_left"]) == (7, "face11-13", 24, 5)


def test_faces_count_ten_under_the_training_rule() -> None:
    env = make("sftrl/points-text-all-once-v1")
    _, info = env.reset(options={"index": int(np.argmax(env.strata()))})
    assert {"J", "Q", "K"} & set(info["cards"])
    counts = {"A": 1, "J": 10, "Q": 10, "K": 10}
    assert info["numbers"] == [counts.get(name) or int(name) for name in info["cards"]]


def test_right_answer_ends_the_episode_with_five_points() -> None:
    env = make()
    env.reset(options={"index": 3})
    observation, reward, terminated, truncated, info = env.step(env.demonstration(3))
    assert (observation, reward, terminated, truncated) == ("", 5.0, True, False)
    assert (info["success"], info["outcome"], info["attempts_left"]) == (True, Outcome.RIGHT, 4)
    assert info["value"] == "24/1"


def test_wrong_answer_comes_back_with_the_verifiers_words() -> None:
    env = make()
    env.reset(options={"index": 0})
    observation, reward, terminated, truncated, info = env.step(wrong_value(env, 0))
    assert (reward, terminated, truncated) == (-1.0, False, False)
    assert info["message"]
    assert observation == prompt.revision(info["message"])
    assert (info["success"], info["outcome"], info["attempts_left"]) == (False, Outcome.WRONG_VALUE, 4)
    assert info["value"].endswith("/1")


def test_the_next_message_has_one_full_stop_after_the_verifiers_words() -> None:
    for rewards in ("exact", "reference"):
        env = make(rewards=rewards)
        env.reset(options={"index": 0})
        observation, *_, info = env.step(formula("#"))
        words = info["message"].rstrip(".")
        assert observation == f"You failed this trial because {words}. Try again."


def test_a_right_answer_may_come_at_any_turn() -> None:
    env = make(verify_iter=3)
    env.reset(options={"index": 5})
    rewards = [env.step(text)[1] for text in (formula("?"), wrong_value(env, 5), env.demonstration(5))]
    assert rewards == [-3.0, -1.0, 5.0]


@pytest.mark.parametrize("rewards", ["exact", "reference"])
@pytest.mark.parametrize("verify_iter", [1, 2, 5])
def test_the_last_wrong_turn_carries_the_budgets_price(rewards: str, verify_iter: int) -> None:
    env = make(verify_iter=verify_iter, rewards=rewards)
    env.reset(options={"index": 0})
    turns = [env.step(wrong_value(env, 0)) for _ in range(verify_iter)]
    assert [turn[1] for turn in turns] == [-1.0] * (verify_iter - 1) + [-2.0]
    assert [turn[3] for turn in turns] == [False] * (verify_iter - 1) + [True]
    assert not any(turn[2] for turn in turns)
    assert turns[-1][0] == ""
    assert turns[-1][4]["attempts_left"] == 0


@pytest.mark.parametrize(
    ("text", "outcome", "exact", "reference"),
    [
        ("{a}-{b}-{c}-{d}", Outcome.WRONG_VALUE, -1, -1),
        ("{a}+{b}+{c}", Outcome.WRONG_NUMBERS, -2, -2),
        ("77+{b}+{c}+{d}", Outcome.WRONG_NUMBERS, -2, -4),
        ("{a}/({b}-{b})", Outcome.WRONG_NUMBERS, -2, -4),
        ("{a}#{b}", Outcome.MALFORMED, -3, -3),
        ("+{a}-+{b}", Outcome.MALFORMED, -3, -8),
    ],
)
def test_reward_rows(text: str, outcome: Outcome, exact: float, reference: float) -> None:
    for rewards, expected in (("exact", exact), ("reference", reference)):
        env = make(rewards=rewards)
        hands = [env.rule.numbers(ranks) for ranks in env.items.tolist()]
        index = next(i for i, numbers in enumerate(hands) if len(set(numbers)) == 4)
        env.reset(options={"index": index})
        answer = formula(text.format(**dict(zip("abcd", hands[index], strict=True))))
        _, reward, _, _, info = env.step(answer)
        assert (reward, info["outcome"]) == (expected, outcome), rewards


def test_the_published_code_fails_a_right_answer_for_its_floats() -> None:
    env_id = "sftrl/points-text-all-once-v1"
    items = make(env_id).items.tolist()
    index = next(i for i, ranks in enumerate(items) if sorted(ranks) == [3, 3, 8, 8])
    for rewards, earned, success in (("exact", 5.0, True), ("reference", 0.0, False)):
        env = make(env_id, rewards=rewards)
        env.reset(options={"index": index})
        _, reward, terminated, _, info = env.step(formula("8/(3-8/3)"))
        assert (reward, terminated, info["success"], info["value"]) == (earned, success, success, "24/1")


def test_division_by_zero_is_a_wrong_value_of_its_own_kind() -> None:
    env = make(OOD)
    index = next(i for i, ranks in enumerate(env.items.tolist()) if len(set(ranks)) < 4)
    ranks = env.items[index].tolist()
    twice = next(rank for rank in ranks if ranks.count(rank) > 1)
    others = list(ranks)
    others.remove(twice)
    others.remove(twice)
    env.reset(options={"index": index})
    _, reward, _, _, info = env.step(formula(f"({others[0]}+{others[1]})/({twice}-{twice})"))
    assert (reward, info["outcome"], info["value"]) == (-1.0, Outcome.UNDEFINED_VALUE, None)


def test_one_seed_one_deal() -> None:
    first, second = make(), make()
    drawn = [first.reset(seed=seed)[1]["index"] for seed in range(50)]
    assert drawn == [second.reset(seed=seed)[1]["index"] for seed in range(50)]
    assert len(set(drawn)) > 25
    first.reset(seed=1)
    second.reset(seed=1)
    later = [first.reset()[1]["index"] for _ in range(20)]
    assert later == [second.reset()[1]["index"] for _ in range(20)]
    assert len(set(later)) > 10


def test_index_wins_over_seed() -> None:
    env = make()
    assert env.reset(seed=1, options={"index": 9})[1]["index"] == 9
    assert env.reset(seed=2, options={"index": np.int32(9)})[0] == env.reset(options={"index": 9})[0]


def test_step_needs_an_episode_under_way() -> None:
    env = make(verify_iter=1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(formula("1"))
    env.reset(options={"index": 0})
    env.step(formula("1"))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(formula("1"))
    env.reset(options={"index": 0})
    env.step(env.demonstration(0))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.demonstration(0))


def test_another_target_is_asked_and_judged() -> None:
    env = make(target=10)
    observation, info = env.reset(options={"index": 0})
    assert "10" in observation.split("[Rule]")[0]
    assert info["target"] == 10
    _, reward, *_, info = env.step(env.demonstration(0))
    assert (reward, info["value"]) == (5.0, "10/1")


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"verify_iter": 0}, "verify_iter=0 .*at least 1"),
        ({"verify_iter": 2.5}, "verify_iter=2.5"),
        ({"verify_iter": True}, "verify_iter=True"),
        ({"rewards": "paper"}, "rewards='paper'.*exact, reference"),
        ({"target": "24"}, "target='24'"),
        ({"target": 10**6}, "target=1000000"),
        ({"target": -(10**30)}, "target="),
        ({"rule": "face9"}, "rule='face9'.*face10, face11-13"),
        ({"part": "dev"}, "part='dev'.*train, validation, test, all"),
        ({"verify_iters": 3}, "verify_iters=3 .*verify_iter, rewards, target"),
    ],
)
@pytest.mark.parametrize("maker", [gymnasium.make, gymnasium.make_vec])
def test_a_bad_keyword_is_named_with_what_would_be_right(maker: Any, keywords: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        maker(ID, **keywords)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"index": -1}, "from 0 to"),
        ({"index": 10**9}, "1000000000"),
        ({"index": 10**30}, "index"),
        ({"index": 1.0}, "index.*1.0"),
        ({"index": True}, "index.*True"),
        ({"index": [1]}, "index"),
        ({"item": 1}, "item.*index"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], told: str) -> None:
    env = make()
    with pytest.raises(UserError, match=told):
        env.reset(options=options)


@pytest.mark.parametrize("answer", [None, 24, b"24", ["24"]])
def test_an_answer_is_a_string(answer: Any) -> None:
    env = make()
    env.reset(options={"index": 0})
    with pytest.raises(UserError, match="answer="):
        env.step(answer)
    assert env.step(env.demonstration(0))[1] == 5.0


def test_items_with_the_same_numbers_ask_the_same_question() -> None:
    env = gymnasium.make("sftrl/points-text-id-v1").unwrapped
    questions = env.questions()
    assert questions.shape == (env.num_items,)
    known: dict[tuple[int, ...], int] = {}
    for ranks, question in zip(env.items.tolist(), questions.tolist(), strict=True):
        numbers = tuple(sorted(min(rank, 10) for rank in ranks))
        assert known.setdefault(numbers, question) == question
    assert len(set(known.values())) == len(known) == 109
    shifted = gymnasium.make("sftrl/points-text-rule-ood-v1").unwrapped
    assert len(set(shifted.questions().tolist())) == shifted.num_items == 796
