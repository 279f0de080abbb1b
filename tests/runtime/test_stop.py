from __future__ import annotations

import signal

import pytest

from sftrl_fast.runtime.stop import StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_sets_the_flag_and_the_exit_code(number: signal.Signals, code: int) -> None:
    with StopSignal() as stop:
        assert not stop.requested
        assert stop.exit_code == 0
        signal.raise_signal(number)
        assert stop.requested
        assert stop.exit_code == code


def test_the_user_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignal():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err.count("stopping") == 1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_signal_interrupts_at_once(first: signal.Signals) -> None:
    with StopSignal() as stop:
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.received == first


def test_the_handlers_from_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_outer_block_learns_what_the_inner_one_heard() -> None:
    with StopSignal() as outer:
        with StopSignal() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner.requested
        assert outer.exit_code == 143


def test_an_inner_block_knows_what_the_outer_one_heard() -> None:
    with StopSignal() as outer:
        signal.raise_signal(signal.SIGINT)
        with StopSignal() as inner:
            assert inner.received == outer.received
