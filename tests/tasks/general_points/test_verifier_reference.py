from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import pytest

from sftrl_fast import Outcome, solve, verify

ROOT = Path(__file__).parents[3]


def answer(formula: str) -> str:
    return f'{{"cards": ["3", "3", "8", "8"], "number": [3, 3, 8, 8], "formula": "{formula}"}}'


def near_formula(rng: random.Random, numbers: list[int]) -> str:
    """A solution or a chain of the numbers in some order, now and then with one character wrong."""
    operators = rng.choices("+-*/", k=3)
    chain = "".join(f"{n}{o}" for n, o in zip(rng.sample(numbers, 4), [*operators, ""], strict=True))
    formula = rng.choice([chain, f"({chain[:-2]}){chain[-2:]}", *solve(numbers)])
    if rng.random() < 0.4:
        i = rng.randrange(len(formula))
        formula = formula[:i] + rng.choice(["", "(", ")", "+", "0"]) + formula[i + rng.randrange(2) :]
    return formula


@pytest.mark.parametrize("cards_shown", [False, True])
def test_reference_repeats_the_published_rewards_and_messages(cards_shown: bool) -> None:
    lines = (ROOT / "tests/golden/reference_cases.jsonl").read_text().splitlines()
    cases = [case for case in map(json.loads, lines) if case["cards_shown"] == cards_shown]
    assert len(cases) > 50
    verdicts = verify(
        [case["text"] for case in cases],
        [case["ranks"] for case in cases],
        rule=[case["rule"] for case in cases],
        rewards="reference",
        cards_shown=cards_shown,
    )
    for case, reward, message in zip(cases, verdicts.reward.tolist(), verdicts.messages(), strict=True):
        assert (reward, message) == (case["reward"], case["message"]), case["text"]


@pytest.mark.parametrize(
    ("text", "reward", "outcome", "message"),
    [
        (answer("8/(3-8/3)"), 0, Outcome.WRONG_VALUE, "."),
        (answer("8/(3-8/3"), 1, Outcome.MALFORMED, "partial solution."),
        (answer("8 / (3-8/3)"), -3, Outcome.MALFORMED, "illegal characters."),
        (answer("8*8/(3-3)"), -1, Outcome.UNDEFINED_VALUE,
         "8 is partially correct but the full formula does not match any solution."),
        (answer("\u0668/(3-8/3)"), -1, Outcome.MALFORMED, "your formula does not match any solution."),
        (answer("08/(3-8/3)"), -1, Outcome.MALFORMED, "your formula does not match any solution."),
        (answer("(" * 201 + "3+3+8+8" + ")" * 201), -1, Outcome.MALFORMED,
         "your formula does not match any solution."),
        (answer("3*8"), -2, Outcome.WRONG_NUMBERS, "you didn't use numbers: [3, 8]."),
        (answer("3+0010+007"), -4, Outcome.WRONG_NUMBERS,
         "you used invalid numbers: [10, 7], you didn't use numbers: [3, 8]."),
        (answer("3+(3+8+8"), -1, Outcome.MALFORMED, "your formula does not match any solution."),
        ('{"formula": 24}', -3, Outcome.MALFORMED, "illegal characters."),
        ('{"formula": "1+1", "formul\\u0061": "3*8=24"}', -2, Outcome.WRONG_NUMBERS,
         "you didn't use numbers: [3, 8]."),
        ('[{"formula": "3*8"}]', -2, Outcome.WRONG_NUMBERS, "you didn't use numbers: [3, 8]."),
        ("formula", -3, Outcome.MALFORMED, "illegal characters."),
    ],
)  # fmt: skip
def test_reference_keeps_the_published_oddities(
    text: str, reward: float, outcome: Outcome, message: str
) -> None:
    verdicts = verify([text], [[3, 3, 8, 8]], rewards="reference")
    assert (verdicts.reward[0], verdicts.outcome[0], verdicts.messages()) == (reward, outcome, [message])


@pytest.fixture(scope="module")
def published() -> ModuleType:
    """The plain Python form of the published check that the benchmark times."""
    spec = importlib.util.spec_from_file_location("points_reference", ROOT / "bench/points_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_reference_agrees_with_plain_python_on_random_answers(published: ModuleType) -> None:
    rng = random.Random(11)
    shapes = [
        '{{"cards": {cards}, "number": [1, 2], "formula": "{formula}"}}',
        '{{"cards": {cards}, "formula": "{formula}",}}',
        "{{'cards': {cards}, 'formula': '{formula}'}}",
        '"formula": "{formula}" "formula": "1" "cards": {cards}',
        '{{"number": [NaN, -1.5e3, {{"formula": []}}], "cards": "{cards}", "formula": "{formula}\\u0030"}}',
    ]
    parts = ["+", "-", "*", "/", "(", ")", "3", "8", "1", "12", "0", "=", "\u0663"]
    hand_rows = [[3, 3, 8, 8], [1, 2, 12, 13], [1, 1, 1, 11]]
    for i in range(1500):
        ranks = rng.sample(rng.choice(hand_rows), 4)
        noise = "".join(rng.choices(parts, k=rng.randrange(10)))
        formula = near_formula(rng, ranks) if i % 2 else noise
        names = [published.RANK_NAMES[rank - 1] for rank in rng.sample(ranks, 4)]
        names = rng.choice(
            [names, [f"'{name}'" for name in names], [f'"{name}"' for name in names], ["5"] * 4]
        )
        cards = "[" + rng.choice([", ", ","]).join(names) + "]"
        text = rng.choice(shapes).format(cards=cards, formula=formula)
        shown = rng.random() < 0.3
        solutions = published.stored_solutions(tuple(sorted(ranks)), 24)
        expected = published.verify(text, ranks, ranks, 24, shown, solutions)
        verdicts = verify([text], [ranks], rule="face11-13", rewards="reference", cards_shown=shown)
        assert (verdicts.reward[0], verdicts.messages()[0]) == expected, (text, ranks)
