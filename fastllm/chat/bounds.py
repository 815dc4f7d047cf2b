"""What one render may use up: a budget of work, and the size of every value it makes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sized
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_CHARS = 16 << 20  # of one text, and of the prompt; a context of 4 million tokens
MAX_ITEMS = 1 << 18  # of one nested list or dict
MAX_NUMBER = 1 << 20  # of a width, a count, an indent
BUDGET = 4_000_000  # units of about a microsecond
CHARS_PER_UNIT = 64

LONG_NUMBER = re.compile(r"\d{4}")  # in a format: a width of a thousand or more
_COMPUTED_WIDTH = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{")  # '%*d', '{:{w}}'


class Budget:
    """What one render may still do.

    Parameters
    ----------
    source_chars : int
        Length of the template; a macro's literal text, which nothing else counts, is at most that.
    """

    def __init__(self, source_chars: int) -> None:
        self.left = BUDGET
        self.macro_units = 4 + source_chars // (4 * CHARS_PER_UNIT)

    def charge(self, units: int) -> None:
        """Take `units`; `SecurityError` when none are left."""
        self.left -= units
        if self.left < 0:
            raise SecurityError("it does not come to an end (too many loop rounds or calls)")


current_budget: ContextVar[Budget] = ContextVar("current_budget")


def measured(value: Any) -> Any:
    """Return `value` if it is of bearable size, counting everything inside it; charge for it."""
    items = chars = 0
    stack = [value]
    while stack:
        one = stack.pop()
        items += 1
        if isinstance(one, (str, bytes)):
            chars += len(one)
        elif isinstance(one, (list, tuple, set, frozenset)):
            stack.extend(one if len(one) <= MAX_ITEMS else [])
            items += len(one) if len(one) > MAX_ITEMS else 0
        elif isinstance(one, dict):
            items += len(one)
            stack.extend(one.values() if len(one) <= MAX_ITEMS else [])
        elif isinstance(one, Namespace):
            stack.extend(object.__getattribute__(one, "_Namespace__attrs").values())
        if items > MAX_ITEMS or chars > MAX_CHARS:
            raise SecurityError(
                f"it makes a value of more than {MAX_CHARS} characters or {MAX_ITEMS} items"
            )
    current_budget.get().charge(1 + items // 8 + chars // CHARS_PER_UNIT)
    return value


def charge_reading(value: Any) -> None:
    """Charge for a filter that looks at all of `value`."""
    units = len(value) if isinstance(value, Sized) else 0
    current_budget.get().charge(1 + (units // 16 if isinstance(value, str) else units))


def require(size: int) -> None:
    """Refuse to build a text or list of more than `MAX_CHARS`."""
    if size > MAX_CHARS:
        raise SecurityError(f"it makes a text of {size} characters, at most {MAX_CHARS} are built")


def size_of(value: Any) -> int:
    """Return the length of a text or list, and that of a number for all else."""
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 24


def check_numbers(values: Iterable[Any]) -> None:
    """Refuse numbers that would make a text enormous as a width or count."""
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise SecurityError(f"it asks for a width or count of {value}, at most {MAX_NUMBER}")


def check_format(pattern: Any, values: Iterable[Any]) -> None:
    """Bound what ``%`` and ``format`` can make of a pattern and its values."""
    if not isinstance(pattern, (str, bytes)):
        return
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    if LONG_NUMBER.search(text) or _COMPUTED_WIDTH.search(text):
        raise SecurityError("it formats with a width that is computed or above 999")
    places = text.count("%") + text.count("{")
    require(len(text) + places * max(1000, *map(size_of, values), 0))


def check_replace(text: Any, old: Any, new: Any) -> None:
    """Bound ``text.replace(old, new)``."""
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        require(len(text) + text.count(old) * len(new))


def check_join(separator: Any, items: Any) -> None:
    """Bound ``separator.join(items)``."""
    if isinstance(items, Sized):
        require(len(items) * size_of(separator) + _total_chars(items))


def _total_chars(items: Any) -> int:
    return sum(size_of(item) for item in items)


def factor(value: Any) -> int:
    """Return by how much an operand of ``*`` multiplies: a number its value, a text its length."""
    return max(int(value), 0) if isinstance(value, int) else size_of(value)


def check_bits(left: int, right: int) -> None:
    """Bound the product of two whole numbers."""
    if left.bit_length() + right.bit_length() > 4096:
        raise SecurityError("it multiplies numbers of more than a thousand digits")


def check_method(
    owner: str | bytes, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Bound a call of a method of `owner` that can make a large text."""
    values = (*args, *kwargs.values())
    if name == "replace" and len(args) >= 2:
        check_replace(owner, args[0], args[1])
    elif name == "join" and args:
        check_join(owner, args[0])
    elif name == "format":
        check_format(owner, values)
    elif name in ("center", "ljust", "rjust", "zfill"):
        check_numbers(values)
