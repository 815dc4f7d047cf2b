"""Which messages of a conversation go together, and which go first when it grows too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

M = TypeVar("M", bound=Mapping[str, Any])
_KEPT = ("system", "developer")


def without_oldest_turn(messages: Sequence[M]) -> list[M] | None:
    """Return the conversation without its oldest turn, or None where only the last one is left.

    A turn begins with a user's message and goes on to the next one's: answers, tool calls and their
    results stay or go together. Messages of the system are never dropped.
    """
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if len(starts) < 2:
        return None
    return [m for i, m in enumerate(messages) if i >= starts[1] or m["role"] in _KEPT]
