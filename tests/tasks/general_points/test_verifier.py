from __future__ import annotations

import random
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast import Outcome, Verdicts, hands, solve, verify
from sftrl_fast.core import UserError

HAND = [3, 3, 8, 8]
REWARD = {
    Outcome.RIGHT: 5,
    Outcome.WRONG_VALUE: -1,
    Outcome.UNDEFINED_VALUE: -1,
    Outcome.OVERFLOW: -1,
    Outcome.WRONG_NUMBERS: -2,
    Outcome.MALFORMED: -3,
}


def answer(formula: str, cards: str = '["3", "3", "8", "8"]') -> str:
    return f'{{"cards": {cards}, "number": [3, 3, 8, 8], "formula": "{formula}"}}'


def judge(text: str | bytes, ranks: list[int] = HAND, **options: Any) -> Verdicts:
    return verify([text], [ranks], **options)


def rows(verdicts: Verdicts) -> list[tuple[Any, ...]]:
    return list(
        zip(
            verdicts.reward.tolist(),
            verdicts.outcome.tolist(),
            verdicts.cards_ok.tolist(),
            map(tuple, verdicts.value.tolist()),
            verdicts.messages(),
            strict=True,
        )
    )


# ---- exact


@pytest.mark.parametrize(
    ("formula", "outcome", "value", "message"),
    [
        ("8/(3-8/3)", Outcome.RIGHT, (24, 1), "the formula is right"),
        ("8 / ( 3 - 8 / 3 ) ", Outcome.RIGHT, (24, 1), "the formula is right"),
        ("8/(3-8/3)=24=24 or so", Outcome.RIGHT, (24, 1), "the formula is right"),
        ("3+3+8+8", Outcome.WRONG_VALUE, (22, 1), "the formula's value is 22, not 24"),
        ("3/8-3/8*1", Outcome.WRONG_NUMBERS, (0, 1), "the formula must use each of 3, 3, 8, 8 exactly once"),
        ("3/8/8-3", Outcome.WRONG_VALUE, (-189, 64), "the formula's value is -189/64, not 24"),
        ("8*8/(3-3)", Outcome.UNDEFINED_VALUE, (0, 0), "the formula divides by zero"),
        ("3*8", Outcome.WRONG_NUMBERS, (24, 1), "the formula must use each of 3, 3, 8, 8 exactly once"),
        ("12+12", Outcome.WRONG_NUMBERS, (24, 1), "the formula must use each of 3, 3, 8, 8 exactly once"),
        ("3+3+3+8", Outcome.WRONG_NUMBERS, (17, 1), "the formula must use each of 3, 3, 8, 8 exactly once"),
        ("1/0", Outcome.WRONG_NUMBERS, (0, 0), "the formula must use each of 3, 3, 8, 8 exactly once"),
        ("9" * 400, Outcome.WRONG_NUMBERS, (0, 0), "the formula must use each of 3, 3, 8, 8 exactly once"),
        ("8/(3-8/3", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("8/(3-8/3))", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("-3+3+8*8", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("08/(3-8/3)", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("3**3+8-8", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("8//3*3+8", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("3(8)+3-8", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("3 3+8+8", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("3+3\t+8+8", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("3+3+8+\u0668", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
        ("=24", Outcome.MALFORMED, (0, 0), "the formula is malformed"),
    ],
)
def test_exact_judges_grammar_then_numbers_then_value(
    formula: str, outcome: Outcome, value: tuple[int, int], message: str
) -> None:
    expected = (REWARD[outcome], outcome, True, value, message)
    assert rows(judge(answer(formula))) == [expected]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Let me think. {'formula': '8/(3-8/3)',}", True),
        ('"formula"\n :\t"8/(3-8/3)"', True),
        ("'formula': \"8/(3-8/3)\"", True),
        ('{"formula": "1+1"} no, {"formula": "8/(3-8/3)"}', True),
        ('{"formula": "8/(3-8/3)"} no, {"formula": "1+1"}', False),
        ('{"formula": "8/(3-8/3)"} formula: 1+1', True),
        ('{"formula": "8/(3-8/3)"} no, {"formula": 24}', False),
        ('{"formula": "8/(3-8/3)"} no, {"formula": "8/(3', False),
        ("formula: 8/(3-8/3)", False),
        ("{'formula\": '8/(3-8/3)'}", False),
        ("8/(3-8/3)", False),
        ("", False),
    ],
)
def test_exact_reads_the_last_formula_key(text: str, right: bool) -> None:
    assert (judge(text).outcome[0] == Outcome.RIGHT) == right


@pytest.mark.parametrize(
    ("cards", "ok"),
    [
        ('["A", "10", "Q", "K"]', True),
        ("['k', 'a', '10', 'q']", True),
        ("[A, 10, Q, K]", True),
        ("[ A,10 ,Q,\nK ]", True),
        ('["A", "10", "Q", "Q"]', False),
        ('["A", "10", "Q"]', False),
        ('["A", "10", "Q", "K", "K"]', False),
        ('["A", "10", "Q", "K",]', False),
        ('["1", "10", "12", "13"]', False),
        ("[\"A', 10, Q, K]", False),
        ('["A", "10", "Q", "K"', False),
        ('["K", "K", "K", "K"], "cards": [A, 10, Q, K]', True),
        ('[A, 10, Q, K], "cards": none', True),
        ('"A, 10, Q, K"', False),
    ],
)
def test_exact_compares_the_cards_as_a_multiset(cards: str, ok: bool) -> None:
    text = f'{{"cards": {cards}, "formula": "1*10+10+10"}}'
    shown, hidden = (judge(text, [1, 10, 12, 13], cards_shown=flag) for flag in (True, False))
    assert shown.cards_ok[0] == hidden.cards_ok[0] == ok
    assert hidden.reward[0] == -1
    assert shown.reward[0] == (-1 if ok else -2.5)


def test_misread_cards_are_added_on_top_of_every_outcome() -> None:
    for formula in ("8/(3-8/3)", "3+3+8+8", "8*8/(3-3)", "1+1", "("):
        text = answer(formula, cards="[A, A, A, A]")
        plain, misread = judge(text), judge(text, cards_shown=True)
        assert misread.reward[0] == plain.reward[0] - 1.5
        assert misread.outcome[0] == plain.outcome[0]
        assert misread.messages() == ["the cards were read wrongly, and " + plain.messages()[0]]


def test_rule_and_target_may_differ_from_row_to_row() -> None:
    texts = [answer("10+10+2+2"), answer("11+13-2+2"), answer("11+13-2+2"), answer("10+10+2+2")]
    verdicts = verify(
        texts,
        [[11, 13, 2, 2]] * 4,
        rule=["face10", "face11-13", "face10", "face10"],
        target=[24, 24, 24, 25],
    )
    expected = [Outcome.RIGHT, Outcome.RIGHT, Outcome.WRONG_NUMBERS, Outcome.WRONG_VALUE]
    assert verdicts.outcome.tolist() == expected
    assert "10, 10, 2, 2" in verdicts.messages()[2]
    assert verdicts.messages()[3].endswith("24, not 25")


def test_dtypes_shapes_and_the_empty_batch() -> None:
    for n in (0, 3):
        verdicts = verify([answer("3+3+8+8")] * n, np.tile(HAND, (n, 1)))
        assert len(verdicts) == n
        assert (verdicts.reward.dtype, verdicts.reward.shape) == (np.float32, (n,))
        assert (verdicts.outcome.dtype, verdicts.outcome.shape) == (np.uint8, (n,))
        assert (verdicts.cards_ok.dtype, verdicts.cards_ok.shape) == (np.bool_, (n,))
        assert (verdicts.value.dtype, verdicts.value.shape) == (np.int64, (n, 2))
        assert len(verdicts.messages()) == n
    assert len(verify([], [])) == 0


def test_messages_do_not_change_with_the_caller_s_arrays() -> None:
    ranks = np.array([HAND])
    verdicts = verify([answer("1+1")], ranks)
    before = verdicts.messages()
    ranks[:] = 1
    assert verdicts.messages() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "face12"}, ["rule='face12'", "face10", "face11-13"]),
        ({"rule": ["face10", "face10"]}, ["rule has 2 entries"]),
        ({"rewards": "best"}, ["rewards='best'", "exact", "reference"]),
        ({"target": -1}, ["target=-1", "0 to 1000000"]),
        ({"target": 10**30}, ["target"]),
        ({"target": 2.5}, ["target=2.5", "integer"]),
        ({"target": [24, 25]}, ["target", "(2,)"]),
        ({"ranks": [[3, 3, 8]]}, ["ranks", "(1, 4)", "(1, 3)"]),
        ({"ranks": [[0, 3, 8, 8]]}, ["ranks", "0 to 8"]),
        ({"ranks": [[14, 3, 8, 8]]}, ["ranks", "3 to 14"]),
        ({"ranks": [[3.0, 3.0, 8.0, 8.0]]}, ["ranks", "integers", "float64"]),
        ({"responses": "text"}, ["responses", "one str"]),
        ({"responses": [None]}, ["responses[0]", "NoneType"]),
    ],
)
def test_bad_arguments_end_in_one_clear_line(arguments: dict[str, Any], words: list[str]) -> None:
    call: dict[str, Any] = {"responses": [""], "ranks": [HAND], **arguments}
    with pytest.raises(UserError) as error:
        verify(call.pop("responses"), call.pop("ranks"), **call)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


# ---- any text

FRAGMENTS = st.sampled_from(
    ['"formula": "', "'formula': '", '"cards": [', "]", '"', "'", "{", "}", "=", "(", ")", "+", "-", "*", "/",
     ", ", "3", "8", "00", "8/(3-8/3)", '["3", "3", "8", "8"]', "[3, 3, 8, 8]", "\\", "\n", "\0",
     "\u0663", "\ud800", "é"]
)  # fmt: skip
TEXTS = st.one_of(st.text(st.characters()), st.lists(FRAGMENTS, max_size=12).map("".join))
ANSWERS = st.one_of(
    TEXTS, TEXTS.map(answer), st.binary(), TEXTS.map(lambda t: t.encode("utf-8", "surrogatepass"))
)


@settings(deadline=None, max_examples=200)
@given(st.lists(ANSWERS, max_size=8), st.sampled_from(["exact", "reference"]), st.booleans())
def test_a_batch_says_what_its_single_answers_say(texts: list[Any], rewards: str, cards_shown: bool) -> None:
    options: dict[str, Any] = {"rewards": rewards, "cards_shown": cards_shown}
    single = [rows(judge(text, **options))[0] for text in texts]
    assert rows(verify(texts, [HAND] * len(texts), **options)) == single
    assert all(-20_000 < row[0] <= 5 and row[4] for row in single)


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["exact", "reference"]))
def test_bytes_and_their_text_get_the_same_verdict(text: str, rewards: str) -> None:
    encoded = text.encode("utf-8", "surrogatepass")
    assert rows(judge(text, rewards=rewards)) == rows(judge(encoded, rewards=rewards))


@pytest.mark.parametrize("rewards", ["exact", "reference"])
def test_huge_and_broken_texts_are_safe(rewards: str) -> None:
    mega = 1_000_000
    broken: list[str | bytes] = [
        "(" * mega, answer("(" * mega), answer(")" * mega), answer("9" * mega), "[" * mega, "{" * mega,
        '{"a":' * mega, answer("1+" * (mega // 2)), '"cards": [' * 100_000, '"formula": "\n' * 100_000,
        b"\xff\xfe\x00", b'"formula": "\xc0\xb8"', '"formula": "8\ud800"', "\0" * 10, '"formula": "\0"',
    ]  # fmt: skip
    verdicts = verify(broken, [HAND] * len(broken), rewards=rewards)
    assert (verdicts.reward < 0).all()
    assert all(verdicts.messages())
    deep = answer("(" * mega + "8/(3-8/3)" + ")" * mega)
    assert judge(deep).outcome[0] == Outcome.RIGHT


# ---- against another implementation


def fraction_outcome(formula: str, numbers: list[int], target: int) -> tuple[Outcome, Fraction | None]:
    """The exact rules once more, by regular expressions and Python's own evaluation over fractions."""
    formula = formula.split("=")[0]
    squeezed = re.sub(r" *([-+*/()]) *", r"\1", formula.strip(" "))
    illegal = re.search(r"(^|[-+*/(])[-+]|\*\*|//|\(\)", squeezed)
    if illegal or not re.fullmatch(r"([-+*/()]|(?<![0-9])(0|[1-9][0-9]*)(?![0-9]))+", squeezed):
        return Outcome.MALFORMED, None
    python = re.sub(r"\d+", r"Fraction(\g<0>)", squeezed)
    if re.search(r"\)\(|\)\w", re.sub(r"Fraction\(\d+\)", "1", squeezed)) or re.search(r"\d\(", squeezed):
        return Outcome.MALFORMED, None
    value: Fraction | None
    try:
        value = eval(python, {"Fraction": Fraction})
    except SyntaxError:
        return Outcome.MALFORMED, None
    except ZeroDivisionError:
        value = None
    if not isinstance(value, Fraction | None):
        return Outcome.MALFORMED, None
    if sorted(map(int, re.findall(r"\d+", squeezed))) != sorted(numbers):
        return Outcome.WRONG_NUMBERS, value
    if value is None:
        return Outcome.UNDEFINED_VALUE, None
    return (Outcome.RIGHT if value == target else Outcome.WRONG_VALUE), value


def random_formula(rng: random.Random, numbers: list[int], target: int) -> str:
    pieces = [str(number) for number in rng.sample(numbers, len(numbers))]
    while len(pieces) > 1:
        i = rng.randrange(len(pieces) - 1)
        joined = pieces[i] + rng.choice("+-*/") + pieces[i + 1]
        pieces[i : i + 2] = [f"({joined})" if rng.random() < 0.6 else joined]
    formula = pieces[0]
    if rng.random() < 0.2 and (solutions := solve(numbers, target)):
        formula = rng.choice(solutions)
    for _ in range(rng.choice((0, 0, 1, 2))):
        i = rng.randrange(len(formula) + 1)
        formula = (
            formula[:i]
            + rng.choice(["", " ", "(", ")", "+", "*", "0", "7", "=24"])
            + formula[i + rng.randrange(2) :]
        )
    return formula


def test_exact_agrees_with_python_fractions_on_random_formulas() -> None:
    rng = random.Random(5)
    hand_rows = hands("face11-13", solvable=None).tolist()
    seen = set()
    formulas, dealt = [], []
    for _ in range(4000):
        ranks = rng.choice(hand_rows)
        dealt.append(rng.sample(ranks, 4))
        formulas.append(random_formula(rng, ranks, 24))
    verdicts = verify(list(map(answer, formulas)), dealt, rule="face11-13")
    for formula, ranks, code, value in zip(formulas, dealt, verdicts.outcome, verdicts.value, strict=True):
        outcome, fraction = fraction_outcome(formula, ranks, 24)
        assert code == outcome, formula
        assert tuple(value) == ((0, 0) if fraction is None else fraction.as_integer_ratio()), formula
        seen.add(outcome)
    assert seen == set(Outcome) - {Outcome.OVERFLOW}


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["face10", "face11-13"]))
def test_every_solution_is_right(draw: int, rule: str) -> None:
    table = hands(rule)
    ranks = table[draw % len(table)].tolist()
    faces = dict(zip((11, 12, 13), (10, 10, 10) if rule == "face10" else (11, 12, 13), strict=True))
    solutions = solve([faces.get(rank, rank) for rank in ranks])
    verdicts = verify(list(map(answer, solutions)), [ranks] * len(solutions), rule=rule)
    assert solutions
    assert (verdicts.outcome == Outcome.RIGHT).all()
