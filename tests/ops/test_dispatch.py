"""An explicit choice never falls back; the table tells the truth."""

from __future__ import annotations

import logging

import pytest
import torch

from sftrl_fast.core import UserError
from sftrl_fast.ops import dispatch
from sftrl_fast.ops.advantage import group_advantage
from sftrl_fast.ops.logprob import logprob
from sftrl_fast.ops.sample import sample


def broken() -> str:
    return "no such chip"


def probe(impl: str) -> dict[str, dispatch.Implementation]:
    """An op of torch and of ``impl``, which cannot run here."""
    target = "sftrl_fast.ops.logprob:logprob_torch"
    return {impl: dispatch.Implementation(target, broken), "torch": dispatch.Implementation(target)}


def test_every_listed_implementation_resolves_to_a_function() -> None:
    for op, implementations in dispatch.OPS.items():
        assert "torch" in implementations
        for impl, entry in implementations.items():
            if impl in ("triton", "flash") and entry.refuses(None):
                continue  # its module imports a package that is not here
            assert callable(dispatch.resolve(op, impl))


def test_explicit_choice_that_is_missing_says_what_there_is_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.OPS, "probe", probe("triton"))
    with pytest.raises(UserError, match=r"impl='triton'.*'probe'.*available: torch .*triton: no such chip"):
        dispatch.choose("probe", "triton")
    with pytest.raises(UserError, match="cpp: not implemented in this version"):
        dispatch.choose("probe", "cpp")
    with pytest.raises(UserError, match="available: torch"):
        dispatch.choose("probe", "trotch")


def test_argument_beats_environment_beats_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = dispatch.Implementation("sftrl_fast.ops.logprob:logprob_torch")
    monkeypatch.setitem(dispatch.OPS["logprob"], "triton", fast)
    assert dispatch.choose("logprob") == "triton"
    monkeypatch.setenv("SFTRL_IMPL", "torch")
    assert dispatch.choose("logprob") == "torch"
    assert dispatch.choose("logprob", "triton") == "triton"
    assert dispatch.choose("logprob", "auto") == "triton"


def test_unavailable_environment_choice_raises_in_every_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTRL_IMPL", "flash")
    calls = [
        lambda: logprob(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([0])),
        lambda: sample(torch.ones(1, 2), torch.zeros(1)),
        lambda: group_advantage(torch.ones(2), torch.tensor([0, 0]), kind="mean"),
    ]
    for call in calls:
        with pytest.raises(UserError, match="SFTRL_IMPL='flash'"):
            call()


def test_auto_passes_over_what_cannot_run_and_logs_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(dispatch.OPS, "probe", probe("flash"))
    monkeypatch.setattr(dispatch, "_logged", set())
    with caplog.at_level(logging.INFO, logger=dispatch.__name__):
        assert [dispatch.choose("probe") for _ in range(3)] == ["torch"] * 3
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        f"op probe: implementation torch (auto; {device})"
    ]


def test_doctor_rows_cover_each_op_and_name_with_a_reason_where_unavailable() -> None:
    rows = dispatch.availability()
    assert {(row.op, row.impl) for row in rows} == {
        (op, impl) for op in dispatch.OPS for impl in dispatch.IMPLS
    }
    for row in rows:
        assert row.available == (not row.reason)
