"""What one render may use up: a budget of work, and the size of every value it makes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sized
from contextvars import ContextVar
from time import thread_time
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_CHARS = 16 << 20  # of one text, and of the prompt; a context of 4 million tokens
MAX_ITEMS = 1 << 18  # of one nested list or dict
MAX_NUMBER = 1 << 20  # of a width, a count, an indent
BUDGET = 4_000_000  # units of up to some microseconds
BUDGET_PER_ITEM = 4_000  # of the input, so that a look at each message from each message passes
CPU_S = 1.0  # of this thread; whatever else the machine does counts nothing
CPU_S_PER_ITEM = 0.002
CHARS_PER_UNIT = 64
_UNITS_BETWEEN_LOOKS = 2_000  # at the clock

LONG_NUMBER = re.compile(r"\d{4}")  # in a format: a width of a thousand or more
_COMPUTED_WIDTH = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{")  # '%*d', '{:{w}}'


class Budget:
    """What one render may still do, in proportion to what it was given.

    Parameters
    ----------
    source_chars : int
        Length of the template; a macro's literal text, which nothing else counts, is at most that.
    variables : dict
        Plain data. Its lists and dicts are measured once here and not again wherever they turn up.
    """

    def __init__(self, source_chars: int, variables: dict[str, Any]) -> None:
        self.known: dict[int, tuple[int, int]] = {}  # id: items, characters
        items, chars = self._measure(variables)
        self.max_items, self.max_chars = MAX_ITEMS + items, MAX_CHARS + chars
        items += chars // 256
        self.left = BUDGET + BUDGET_PER_ITEM * items
        self.macro_units = 4 + source_chars // (4 * CHARS_PER_UNIT)
        self._to_look = self.left - _UNITS_BETWEEN_LOOKS
        self._until_s = thread_time() + CPU_S + CPU_S_PER_ITEM * items

    def charge(self, units: int) -> None:
        """Take `units`; `SecurityError` when none are left, or no time."""
        self.left -= units
        if self.left < self._to_look:
            self._to_look = self.left - _UNITS_BETWEEN_LOOKS
            if self.left < 0 or thread_time() > self._until_s:
                raise SecurityError("it does not come to an end (too many loop rounds or calls)")

    def _measure(self, value: Any) -> tuple[int, int]:
        """Return the items and characters inside `value`, nested at most as `plain_data` lets."""
        if isinstance(value, str):
            return 1, len(value)
        if not isinstance(value, (list, dict)):
            return 1, 0
        items, chars = 1, 0
        if isinstance(value, dict):
            items += len(value)
            chars += sum(map(len, value))
        for one in value.values() if isinstance(value, dict) else value:
            more_items, more_chars = self._measure(one)
            items += more_items
            chars += more_chars
        self.known[id(value)] = items, chars
        return items, chars


current_budget: ContextVar[Budget] = ContextVar("current_budget")


def measured(value: Any) -> Any:
    """Return `value` if it is of bearable size, counting everything inside it; charge for it."""
    budget = current_budget.get()
    known = budget.known
    if value is None or type(value) in (bool, int, float) or id(value) in known:
        budget.charge(1)
        return value
    items = chars = own_chars = looked = 0
    stack = [value]
    while stack:
        one = stack.pop()
        looked += 1
        items += 1
        if isinstance(one, (str, bytes)):
            chars += len(one)
            own_chars += len(one)
        elif id(one) in known:
            more_items, more_chars = known[id(one)]
            items += more_items
            chars += more_chars
        elif isinstance(one, (list, tuple, set, frozenset)):
            stack.extend(one if len(one) <= budget.max_items else [])
            items += len(one) if len(one) > budget.max_items else 0
        elif isinstance(one, dict):
            items += len(one)
            stack.extend(one.values() if len(one) <= budget.max_items else [])
        elif isinstance(one, Namespace):
            stack.extend(object.__getattribute__(one, "_Namespace__attrs").values())
        if items > budget.max_items or chars > budget.max_chars:
            raise SecurityError(
                f"it makes a value of more than {budget.max_chars} characters or "
                f"{budget.max_items} items"
            )
    budget.charge(1 + looked // 8 + own_chars // CHARS_PER_UNIT)
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
