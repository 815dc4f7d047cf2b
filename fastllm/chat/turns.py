"""Which messages of a conversation go together, and which go first when it grows too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

M = TypeVar("M", bound=Mapping[str, Any])
_KEPT = ("system", "developer")


def num_turns(messages: Sequence[M]) -> int:
    """Return how many turns a conversation has, at least one.

    A turn begins with a user's message and goes on to the next one's: answers, tool calls and their
    results stay or go together.
    """
    return max(1, len(_starts(messages)))


def last_turns(messages: Sequence[M], count: int) -> list[M]:
    """Return the last turns of a conversation, with the messages of the system before them."""
    starts = _starts(messages)
    if count >= max(1, len(starts)):
        return list(messages)
    return [m for i, m in enumerate(messages) if i >= starts[-count] or m["role"] in _KEPT]


def _starts(messages: Sequence[M]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "user"]
