"""The random numbers against published vectors; the draw against its distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.sample import FIELD_BITS, philox4x32, sample, uniforms, uniforms_numpy

IMPLS = [row.impl for row in availability("sample", torch.empty(0)) if row.available]

# Known answers of the Random123 library (tests/kat_vectors, philox4x32 10): counter, key -> words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[np.ndarray, ...]:
    return tuple(np.array(int(word, 16), dtype=np.uint32) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter: str, key: str, expected: str) -> None:
    got = philox4x32(words(counter), words(key))
    assert " ".join(f"{int(word):08x}" for word in got) == expected


def test_philox_is_the_same_alone_and_in_an_array() -> None:
    counters = tuple(np.stack(column) for column in zip(*(words(c) for c, _, _ in KNOWN), strict=True))
    keys = tuple(np.stack(column) for column in zip(*(words(k) for _, k, _ in KNOWN), strict=True))
    rows = np.stack(philox4x32(counters, keys), axis=1)
    assert [" ".join(f"{int(w):08x}" for w in row) for row in rows] == [expected for _, _, expected in KNOWN]


def test_uniforms_take_the_upper_bits_of_the_packed_counter() -> None:
    field = {
        "seed": 0x299F31D0A4093822,
        "step": 0x13198A2E,
        "prompt": 0x85A308D3,
        "sample": 0x03707344 >> 12,
        "turn": 0x344,
        "position": 0x243F6A88,
    }
    assert float(uniforms(**field)) == (0xD16CFE09 >> 8) / 2**24


def test_every_field_changes_the_number_and_none_leaks_into_another() -> None:
    base = dict.fromkeys(FIELD_BITS, 0)
    keys = [base]
    for name, bits in FIELD_BITS.items():
        keys += [base | {name: value} for value in (1, 2, 2**bits - 1, 2 ** (bits - 1))]
    drawn = {float(uniforms(**key)) for key in keys}
    assert len(drawn) == len(keys)


def test_uniforms_are_flat_and_uncorrelated_along_each_field() -> None:
    grid = uniforms(
        3, 1, np.arange(64)[:, None, None], np.arange(8)[None, :, None], 0, np.arange(40)[None, None, :]
    )
    assert grid.dtype == np.float32
    assert grid.shape == (64, 8, 40)
    assert grid.min() >= 0
    assert grid.max() < 1
    assert stats.kstest(grid.ravel(), "uniform").pvalue > 1e-3
    for axis in range(3):
        ahead, behind = np.delete(grid, 0, axis).ravel(), np.delete(grid, -1, axis).ravel()
        assert abs(np.corrcoef(ahead, behind)[0, 1]) < 4 / np.sqrt(ahead.size)


@pytest.mark.parametrize("name", list(FIELD_BITS))
def test_fields_outside_their_bits_raise(name: str) -> None:
    for value in (-1, 2 ** FIELD_BITS[name], 0.5):
        with pytest.raises(UserError, match=name):
            uniforms(**(dict.fromkeys(FIELD_BITS, 0) | {name: value}))  # type: ignore[arg-type]


def many(rows: int) -> Tensor:
    """Evenly spread numbers: the share of rows that draw a token is its probability, to 1 / rows."""
    return (torch.arange(rows) + 0.5) / rows


def filtered(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The distribution to draw from, in float64, written the slow way."""
    p = torch.softmax(logits.double() / temperature, 0)
    order = p.argsort(descending=True).tolist()
    keep = order[:top_k] if top_k else order
    total = float(p[keep].sum())
    head, held = [], 0.0
    for token in keep:
        if held >= top_p * total:
            break
        head.append(token)
        held += float(p[token])
    out = torch.zeros_like(p)
    out[head] = p[head]
    return out / out.sum()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (2.0, 5, 1.0),
        (1.0, 0, 0.8),
        (0.7, 7, 0.6),
        (1.0, 1, 1.0),
        (1.0, 0, 1e-9),
    ],
)
def test_shares_of_drawn_tokens_and_both_log_probabilities_follow_the_distribution(
    impl: str, temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(23, generator=torch.Generator().manual_seed(1)) * 2
    rows = 256 if impl == "triton" else 20_000  # the interpreter takes a row a millisecond
    tokens, plain, sampled = sample(
        logits.expand(rows, -1),
        many(rows),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        impl=impl,
    )
    expected = filtered(logits, temperature, top_k, top_p)
    share = torch.bincount(tokens, minlength=23).double() / rows
    assert (share - expected).abs().max() <= 1.5 / rows
    assert torch.allclose(sampled.double(), expected[tokens].log(), atol=1e-5)
    assert torch.allclose(plain.double(), torch.log_softmax(logits.double(), 0)[tokens], atol=1e-5)


def draws_are_right(
    logits: Tensor, numbers: Tensor, settings: list[tuple[float, int, float]], drawn: tuple[Tensor, ...]
) -> None:
    """Each token is where its number falls in the float64 distribution, but for what rounding decides."""
    slack = 2e-6
    tokens, plain, sampled = drawn
    for row, (temperature, top_k, top_p) in enumerate(settings):
        p = torch.log_softmax(logits[row].double(), 0)
        token = int(tokens[row])
        assert float(plain[row]) == pytest.approx(float(p[token]), abs=2e-5)
        if temperature == 0:
            assert p[token] == p.max()
            continue
        expected = filtered(logits[row], temperature, top_k, top_p)
        below, upto = float(expected[:token].sum()), float(expected[: token + 1].sum())
        assert below - slack <= float(numbers[row]) <= upto + slack
        if expected[token] > 0:  # else it stands at the border of what is kept, which rounding moved
            assert float(sampled[row]) == pytest.approx(float(expected[token].log()), abs=2e-5)
        else:
            assert float(sampled[row]) < np.log(slack) or upto - below < slack


SETTINGS = [(1.0, 0, 1.0), (0.6, 0, 0.9), (1.3, 7, 1.0), (0.0, 0, 1.0), (0.8, 40, 0.7), (1.0, 1, 1.0)]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1, 2, 17, 255, 257, 1000, 5003])
def test_every_level_draws_what_the_float64_distribution_has_there(
    dtype: torch.dtype, vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(24, vocab, generator=generator) * 3).to(dtype)
    if dtype == torch.bfloat16:
        # Ties at the border of what is kept stay in; the slow way drops them. So there are none here.
        order = torch.rand(24, vocab, generator=generator).argsort(1)
        steps = torch.linspace(-4, 4, vocab) if vocab <= 257 else torch.linspace(-400, 4, vocab)
        logits = steps.to(dtype)[order]
        settings = [(temperature, 0, 1.0) for temperature, _, _ in SETTINGS] * 4
    else:
        settings = SETTINGS * 4
    numbers = torch.rand(24, generator=generator)
    columns = [torch.tensor(column) for column in zip(*settings, strict=True)]
    empty = torch.empty
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *a, **k: e.fill_(float("nan")) if (e := empty(*a, **k)).is_floating_point() else e,
    )
    drawn = sample(logits, numbers, temperature=columns[0], top_k=columns[1], top_p=columns[2], impl="cpp")
    draws_are_right(logits, numbers, settings, drawn)


@pytest.mark.parametrize("impl", IMPLS)
def test_settings_of_its_own_give_a_row_what_it_gets_alone(impl: str) -> None:
    generator = torch.Generator().manual_seed(5)
    logits, numbers = torch.randn(6, 900, generator=generator) * 2, torch.rand(6, generator=generator)
    columns = [torch.tensor(column) for column in zip(*SETTINGS, strict=True)]
    together = sample(logits, numbers, temperature=columns[0], top_k=columns[1], top_p=columns[2], impl=impl)
    for row, (temperature, top_k, top_p) in enumerate(SETTINGS):
        alone = sample(
            logits[row : row + 1], numbers[row : row + 1], temperature=temperature, top_k=top_k, top_p=top_p, impl=impl
        )  # fmt: skip
        assert [part[row].item() for part in together] == [part.item() for part in alone]


@pytest.mark.parametrize("impl", IMPLS)
def test_tokens_tied_with_the_last_one_kept_are_kept(impl: str) -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0, -9.0]]).expand(64, -1)
    for settings, kept in (({"top_k": 3}, {0, 1, 2, 3, 4}), ({"top_k": 2}, {1, 3}), ({"top_p": 0.3}, {1})):
        tokens, _, _ = sample(logits, many(64), impl=impl, **settings)  # type: ignore[arg-type]
        assert set(tokens.tolist()) == kept


def test_compiled_random_numbers_are_the_plain_ones() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 3, 64, 1000):
        fields = [rng.integers(0, 2 ** min(bits, 63), size) for bits in FIELD_BITS.values()]
        assert np.array_equal(uniforms(*fields), uniforms_numpy(*fields))
        assert np.array_equal(uniforms(7, *fields[1:]), uniforms_numpy(7, *fields[1:]))


@pytest.mark.parametrize("impl", IMPLS)
def test_philox_draws_pass_a_chi_squared_test(impl: str) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    drawn = torch.from_numpy(uniforms(7, 0, np.arange(4000), 3, 0, 11))
    tokens, _, _ = sample(logits.expand(4000, -1), drawn, impl=impl)
    expected = torch.softmax(logits.double(), 0).numpy() * 4000
    assert stats.chisquare(np.bincount(tokens, minlength=5), expected).pvalue > 1e-3


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_draws_the_same_in_any_batch(impl: str) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, drawn = torch.randn(40, 300, generator=generator), torch.rand(40, generator=generator)
    for settings in ({}, {"temperature": 0.6, "top_k": 50, "top_p": 0.9}, {"temperature": 0.0}):
        whole = sample(logits, drawn, impl=impl, **settings)  # type: ignore[arg-type]
        for row in (0, 17, 39):
            alone = sample(logits[row : row + 1], drawn[row : row + 1], impl=impl, **settings)  # type: ignore[arg-type]
            for w, a in zip(whole, alone, strict=True):
                assert w[row] == a[0]


@pytest.mark.parametrize("impl", IMPLS)
def test_greedy_takes_the_largest_logit_and_calls_the_choice_certain(impl: str) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 5.0, -1e30]])
    tokens, plain, sampled = sample(logits, torch.tensor([0.9, 0.9]), temperature=0.0, impl=impl)
    assert tokens.tolist() == [1, 0]
    assert sampled.tolist() == [0.0, 0.0]
    expected = torch.log_softmax(logits, 1).gather(1, tokens[:, None]).squeeze(1)
    assert torch.allclose(plain, expected, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_ends_of_the_unit_interval_never_draw_a_token_without_probability(impl: str) -> None:
    nothing = float("-inf")
    last = 1 - 2**-24
    generator = torch.Generator().manual_seed(3)
    for vocab in (2, 5, 1000, 50_000):
        logits = torch.randn(4, vocab, generator=generator).mul_(3)
        logits[:, 0] = logits[:, -1] = 0.0
        logits[1::2, 0] = logits[1::2, -1] = nothing
        if vocab == 2:
            logits[:, 0] = 1.0
        tokens, plain, sampled = sample(logits, torch.tensor([0.0, 0.0, last, last]), impl=impl)
        assert torch.isfinite(plain).all()
        assert torch.isfinite(sampled).all()
        assert ((tokens >= 0) & (tokens < vocab)).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_huge_and_tiny_logits_stay_finite(impl: str, scale: float) -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(4)) * scale
    tokens, plain, sampled = sample(logits, many(6), temperature=0.9, impl=impl)
    assert torch.isfinite(plain).all()
    assert torch.isfinite(sampled).all()
    if scale > 1:
        assert torch.equal(tokens, logits.argmax(1))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_no_distribution_are_named(impl: str, temperature: float) -> None:
    for bad in ([0.0, float("nan")], [0.0, float("inf")], [float("-inf")] * 2):
        logits = torch.tensor([[0.0, 1.0], bad, [1.0, 0.0]])
        with pytest.raises(UserError, match=r"logits\[1\]"):
            sample(logits, torch.full((3,), 0.5), temperature=temperature, impl=impl)


def test_bad_arguments_raise_and_are_named() -> None:
    logits, drawn = torch.zeros(2, 3), torch.zeros(2)
    for arguments, message in (
        ((logits[0], drawn), "logits"),
        ((logits[:, :0], drawn), "V > 0"),
        ((logits, drawn[:1]), "uniforms"),
        ((logits, drawn.double()), "uniforms is torch.float64"),
    ):
        with pytest.raises(UserError, match=message):
            sample(*arguments)
    for name, value in (
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
    ):
        with pytest.raises(UserError, match=name):
            sample(logits, drawn, **{name: value})  # type: ignore[arg-type]
