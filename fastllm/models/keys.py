"""Keys: typed, range-checked reading of metadata that comes from a file nobody vouches for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from fastllm.errors import FormatError, UnsupportedError

T = TypeVar("T")

# Largest sizes taken as sound. Far above every real model, small enough that products of two of
# them fit in int64 and that a hostile file cannot make us loop for hours.
MAX_LAYERS = 4096
MAX_SIZE = 1 << 24
MAX_VOCAB = 1 << 28


def shown(value: object) -> str:
    """Return `value` for an error message, cut to one short line."""
    if isinstance(value, list):  # of an array, NumPy's own numbers
        value = [entry.item() if isinstance(entry, np.generic) else entry for entry in value[:64]]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Keys:
    """Metadata of one model, read key by key.

    Every reader takes one or more spellings of a key and returns the first that is present; JSON's
    null counts as absent. A value of the wrong type or out of range is a `FormatError` that names
    the key.

    Parameters
    ----------
    values : mapping of str to object
        Decoded config.json or GGUF metadata.
    where : str
        What to call the source in messages, for example ``"config.json"``.
    prefix : str
        Put before every key, for example ``"llama."``.

    Attributes
    ----------
    asked : set of str
        Keys that were looked for, with their prefix.
    """

    def __init__(self, values: Mapping[str, object], where: str, prefix: str = "") -> None:
        self.values = values
        self.where = where
        self.prefix = prefix
        self.asked: set[str] = set()

    def changed(self, **values: object) -> Keys:
        """Return the same keys with other values for some; what is asked there counts here."""
        other = Keys({**self.values, **values}, self.where, self.prefix)
        other.asked = self.asked
        return other

    def find(self, keys: tuple[str, ...]) -> tuple[str, object]:
        """Return the full name and the value of the first key present, or (name, None)."""
        self.asked.update(self.prefix + key for key in keys)
        for key in keys:
            value = self.values.get(self.prefix + key)
            if value is not None:
                return self.prefix + key, value
        return self.prefix + keys[0], None

    def has(self, *keys: str) -> bool:
        """Whether one of the keys is present (and not null)."""
        return self.find(keys)[1] is not None

    def error(self, name: str, value: object, wanted: str) -> FormatError:
        """Return the error for a value that is not what it should be."""
        return FormatError(f"{self.where}: {name} is {shown(value)}, expected {wanted}")

    def _absent(self, name: str, default: T | None) -> T:
        if default is None:
            raise FormatError(f"{self.where}: {name} is missing")
        return default

    def integer(
        self, *keys: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE
    ) -> int:
        """Return a whole number in [low, high]; a list of equal numbers counts as that number.

        Raises
        ------
        FormatError
            Missing without a default, not a whole number, or out of range.
        UnsupportedError
            A list (one number a layer, say) whose entries differ.
        """
        name, value = self.find(keys)
        if value is None:
            return self._absent(name, default)
        if isinstance(value, (list, tuple, np.ndarray)) and len(value):
            if any(entry != value[0] for entry in value):
                raise UnsupportedError(
                    f"{self.where}: {name} is {shown(list(value))}, different numbers where one is "
                    "built"
                )
            value = value[0]
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise self.error(name, value, "a whole number")
        if not low <= int(value) <= high:
            raise self.error(name, int(value), f"a number from {low} to {high}")
        return int(value)

    def number(
        self, *keys: str, default: float | None = None, low: float = 0.0, high: float = 1e12
    ) -> float:
        """Return a finite number in [low, high]."""
        name, value = self.find(keys)
        if value is None:
            return self._absent(name, default)
        return self._number(name, value, low, high)

    def _number(self, name: str, value: object, low: float, high: float) -> float:
        if isinstance(value, (bool, np.bool_)) or not isinstance(
            value, (int, float, np.integer, np.floating)
        ):
            raise self.error(name, value, "a number")
        # Compared before float(): a JSON integer may be too large to convert.
        if not low <= value <= high or not math.isfinite(value):
            raise self.error(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, *keys: str, default: bool | None = None) -> bool:
        """Return true or false."""
        name, value = self.find(keys)
        if value is None:
            return self._absent(name, default)
        if not isinstance(value, (bool, np.bool_)):
            raise self.error(name, value, "true or false")
        return bool(value)

    def text(self, *keys: str, default: str | None = None) -> str:
        """Return a string."""
        name, value = self.find(keys)
        if value is None:
            return self._absent(name, default)
        if not isinstance(value, str):
            raise self.error(name, value, "a string")
        return value

    def sequence(self, *keys: str) -> Sequence[object]:
        """Return a list (empty when absent)."""
        name, value = self.find(keys)
        if value is None:
            return ()
        if isinstance(value, np.ndarray):
            return list(value)
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise self.error(name, value, "a list")
        return value

    def numbers(self, *keys: str, length: int, low: float, high: float) -> tuple[float, ...]:
        """Return a list of exactly `length` numbers in [low, high]."""
        name, _ = self.find(keys)
        values = self.sequence(*keys)
        if len(values) != length:
            raise FormatError(f"{self.where}: {name} has {len(values)} numbers, expected {length}")
        return tuple(self._number(name, value, low, high) for value in values)

    def section(self, *keys: str) -> Keys | None:
        """Return a nested object as `Keys`, or None when absent."""
        name, value = self.find(keys)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(name, value, "an object")
        return Keys(value, f"{self.where}: {name}")

    def refuse(self, key: str, *, built: tuple[object, ...]) -> None:
        """Refuse a variant nobody wrote.

        Raises
        ------
        UnsupportedError
            `key` is present with a value that is not in `built`; names key and value.
        """
        name, value = self.find((key,))
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if value is not None and value not in built:
            raise UnsupportedError(
                f"{self.where}: {name} is {shown(value)}, which is not built"
                + (f"; built: {', '.join(repr(choice) for choice in built)}" if built else "")
            )

    def refuse_unread(self, known: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse keys that change the numbers of some model and that nobody here looked for.

        Parameters
        ----------
        known : mapping
            Such keys, each with the values that change nothing.

        Raises
        ------
        UnsupportedError
            One is present with another value; names key and value.
        """
        for key, neutral in known.items():
            if self.prefix + key not in self.asked:
                self.refuse(key, built=neutral)
