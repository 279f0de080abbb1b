"""Reading a pickle that may be hostile: dicts, lists, tuples, strings, numbers, booleans and None, nothing else.

A pickle is a program. This runs the part of its language that builds plain values, on a stack of its own; Python's
unpickler is never called, so nothing is imported or called, whatever the file holds.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

from sftrl_fast.core import UserError

MAX_BYTES = 256 * 2**20

_MARK = object()
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int, float, type(None))


def load(path: Path) -> Any:
    """The value in the pickle ``path``. ``UserError`` names what it holds beside plain values, or its damage."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path.name} has {size:,} bytes; at most {MAX_BYTES:,} are read")
        data = path.read_bytes()
    except OSError as fault:
        raise UserError(f"{str(path)!r} cannot be read: {fault.strerror}") from None
    try:
        return _run(data, path.name)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as fault:
        if isinstance(fault, UserError):
            raise
        raise UserError(f"{path.name} is no pickle, or damaged: {str(fault)[:100]}") from None


def _run(data: bytes, name: str) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, position in pickletools.genops(data):
        code = opcode.name
        if code in _VALUES:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _NEW:
            stack.append(_NEW[code]())
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(_plain(stack[-_TUPLES[code] :], _TUPLES[code]))]
        elif code == "MARK":
            stack.append(_MARK)
        elif code in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
            _gather(code, _since_mark(stack), stack)
        elif code == "APPEND":
            _gather("APPENDS", [stack.pop()], stack)
        elif code == "SETITEM":
            value = stack.pop()
            _gather("SETITEMS", [stack.pop(), value], stack)
        elif code == "STOP":
            (result,) = _plain(stack, 1)
            return result
        elif code not in ("PROTO", "FRAME"):
            raise UserError(_refusal(name, code, argument, position or 0, stack))
    raise ValueError("it does not end")


def _refusal(name: str, code: str, argument: Any, position: int, stack: list[Any]) -> str:
    # STACK_GLOBAL finds module and name on the stack.
    called = argument if isinstance(argument, str) else " ".join(s for s in stack[-2:] if isinstance(s, str))
    what = f"{code} {called!r:.80}" if called else code
    return (
        f"{name} holds {what} at byte {position}; only dicts, lists, tuples, strings and numbers are read, and "
        "nothing was run"
    )


def _plain(values: list[Any], count: int) -> list[Any]:
    if len(values) != count or any(value is _MARK for value in values):
        raise ValueError("its stack is out of order")
    return values


def _since_mark(stack: list[Any]) -> list[Any]:
    values = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _gather(code: str, values: list[Any], stack: list[Any]) -> None:
    if code == "TUPLE":
        stack.append(tuple(values))
    elif code == "LIST":
        stack.append(values)
    elif code == "APPENDS":
        if type(stack[-1]) is not list:
            raise ValueError("it appends to what is no list")
        stack[-1].extend(values)
    else:
        if code == "DICT":
            stack.append({})
        if type(stack[-1]) is not dict:
            raise ValueError("it sets items of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Flat keys only: the hash of a tuple of tuples of tuples can take for ever.
            if not all(isinstance(part, _KEYS) for part in (key if isinstance(key, tuple) else (key,))):
                raise ValueError("a key of a dict is neither a string, a number, nor a tuple of these")
            stack[-1][key] = value
