"""Pickles from strangers."""

from __future__ import annotations

import os
import pickle
import pickletools
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftrl_fast.core import UserError
from sftrl_fast.tasks.navigation import plain_pickle

flat = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = flat | st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False))
plain = st.recursive(
    flat,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner)
    ),
    max_leaves=20,
)


def load(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "some.pkl"
    path.write_bytes(data)
    return plain_pickle.load(path)


@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(deadline=None, max_examples=150)
def test_plain_values_come_back(tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int) -> None:
    found = load(tmp_path_factory.mktemp("p"), pickle.dumps(value, protocol))
    assert found == value
    assert repr(found) == repr(value)


class Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_payload_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "owned"
    with pytest.raises(UserError, match=r"some\.pkl holds (STACK_)?GLOBAL 'posix system' at byte"):
        load(tmp_path, pickle.dumps({(1.0, 2.0): Attack(mark)}, protocol))
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x02\x82\x01.",
        b"Psome id\n.",
        pickle.dumps({1, 2}),
        pickle.dumps(b"bytes"),
        pickle.dumps(bytearray(b"bytes"), 5),
        pickle.dumps(complex(1, 2)),
        pickle.dumps(len),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, data: bytes) -> None:
    pickletools.dis(data, out=open(os.devnull, "w"))  # noqa: SIM115  (each is a pickle in good order)
    with pytest.raises(UserError, match="nothing was run"):
        load(tmp_path, data)


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"(.", b"junk", b"\x80\x04", b"]a.", b"]]s.", b"N)a.", b"h\x05.", b"I12x\n.", b"(((t.",
        b"N\x86.", b"}(Nu.", pickle.dumps({(1.0, 2.0): "a"})[:-3], b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fxx.",
        b"V\\ud8", b"I" + b"9" * 5000 + b"\n.", b"NN.",
    ],
)  # fmt: skip
def test_damaged_files_are_told(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="no pickle, or damaged"):
        load(tmp_path, data)


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=200)
def test_any_bytes_give_a_value_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with suppress(UserError):
        plain_pickle_repr = repr(load(tmp_path_factory.mktemp("p"), data))
        assert "object at" not in plain_pickle_repr


def test_keys_whose_hash_takes_for_ever_are_refused(tmp_path: Path) -> None:
    """Fifty tuples around each other: as a key, 2 to the 50 hashes."""
    data = b"}" + b"I1\n" + b"q\x00h\x00\x86" * 50 + b"Ns."
    with pytest.raises(UserError, match="key of a dict"):
        load(tmp_path, data)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "some.pkl"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(UserError, match="314,572,800 bytes"):
        plain_pickle.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        plain_pickle.load(tmp_path / "none.pkl")
