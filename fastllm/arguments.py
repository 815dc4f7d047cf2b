"""Arguments: what callers hand in, checked and named, and how an error shows a value."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from reprlib import Repr
from typing import Any

from fastllm.errors import RequestError

MAX_INT = (1 << 31) - 1  # of counts and ids, as the kernels hold them


def shown(value: object) -> str:
    """Return a value as an error shows it: its repr, one line, at most about 80 characters."""
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        text = " ".join(short.repr(value).split())
    except Exception:  # noqa: BLE001  a repr of the caller's own; the error matters more
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def token_id_list(token_ids: Any, where: str) -> list[int]:
    """Return token ids (a list, tuple, NumPy array or iterator) as a list of int.

    Raises
    ------
    RequestError
        It is something else, or an item is not a whole number from 0 up.
    """
    allowed = "a text or a list of token ids" if "prompt" in where else "a list of token ids"
    items = ordered_items(token_ids, where, allowed)
    for i, item in enumerate(items):
        if type(item) is not int or not 0 <= item <= MAX_INT:
            items[i] = whole_number(f"{where}[{i}]", item, 0, MAX_INT)
    return items


def ordered_items(value: Any, where: str, allowed: str) -> list[Any]:
    """Return a list, tuple, array or iterator as a list; `RequestError` for all else."""
    # bytes and dicts iterate over numbers and keys that nobody meant as token ids; a set has no
    # order. What the caller's own iterator raises is the caller's.
    refused = (str, bytes, bytearray, memoryview, Mapping, set, frozenset, type)
    if isinstance(value, refused) or not isinstance(value, Iterable):
        raise RequestError(f"{where}={shown(value)}: must be {allowed}")
    if getattr(value, "ndim", None) == 0:  # NumPy's scalars say that they are iterable
        raise RequestError(f"{where}={shown(value)}: must be {allowed}")
    return list(value)


def boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool, NumPy's too; `RequestError` for all else."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise RequestError(f"{name}={shown(value)}: must be True or False")


def real_number(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float from `low` to `high`; `RequestError` for all else, NaN too."""
    # numpy numbers are welcome: they have __float__ (or __index__); bool has too and is not.
    if not isinstance(value, (bool, str, bytes)):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if low <= number <= high:  # false for NaN
            return number
    raise RequestError(f"{name}={shown(value)}: must be a number from {low:g} to {high:g}")


def seconds(name: str, value: Any) -> float:
    """Return a time limit as a float; infinity is none.

    Raises
    ------
    RequestError
        It is not a number from 0 up.
    """
    return real_number(name, value, 0.0, float("inf"))


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` as an int from `low` to `high`; NumPy's numbers are welcome.

    Raises
    ------
    RequestError
        It is something else; the text says under which name, and what is allowed.
    """
    if not isinstance(value, bool):
        try:
            number = operator.index(value)
        except (TypeError, ValueError):
            number = low - 1
        if low <= number <= high:
            return number
    raise RequestError(f"{name}={shown(value)}: must be a whole number from {low} to {high}")
