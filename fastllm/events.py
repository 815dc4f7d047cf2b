"""Sinks: where the driver's thread puts the events of a request, and a caller takes them.

A stream's reader is woken for every token; who wants the whole answer once, at its end: a hand-over
between threads costs a switch of the GIL. Both wait in a `SimpleQueue`, which has nothing that an
interrupted reader could leave locked.
"""

from __future__ import annotations

from collections.abc import Callable
from pickle import PicklingError
from queue import Empty, SimpleQueue
from typing import NoReturn

from fastllm.errors import FastLLMError
from fastllm.request import Chunk

# A stream is computed so far ahead of its reader: more than anybody falls behind by accident (a
# second of text at 64 tokens a second), and little beside what an answer nobody reads would cost.
MAX_UNREAD = 64
# Waiting readers look up so often. Nothing depends on it but readers who share a stream with one
# that was interrupted between taking the last event and telling them.
LOOK_UP_S = 1.0

Event = Chunk | FastLLMError


class Held:
    """What belongs to a request on its way: a second one would not keep it alive."""

    def __reduce__(self) -> NoReturn:
        raise PicklingError(
            f"{type(self).__name__} cannot be pickled or copied: it is an answer on its way; pass "
            "on what comes out of it"
        )


class Unread:
    """Sink of a stream: every event, in order.

    Parameters
    ----------
    notify : callable, optional
        Called after each event, in the driver's thread.
    """

    def __init__(self, notify: Callable[[], None] | None = None) -> None:
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._notify = notify

    @property
    def full(self) -> bool:
        """True while the reader is `MAX_UNREAD` events behind."""
        return self._queue.qsize() >= MAX_UNREAD

    @property
    def pending(self) -> bool:
        """True when `take` would not wait."""
        return not self._queue.empty()

    def put(self, event: Event | None) -> None:
        """Add an event; None wakes a reader without one."""
        self._queue.put(event)
        if self._notify is not None:
            self._notify()

    def take(self, *, wait: bool = True) -> Event | None:
        """Return the next event; None now and then while there is none."""
        try:
            return self._queue.get(block=wait, timeout=LOOK_UP_S if wait else None)
        except Empty:
            return None


class Gathered:
    """Sink of a whole answer.

    Parameters
    ----------
    notify : callable, optional
        Called once at the end, in the driver's thread.

    Attributes
    ----------
    chunks : list of Chunk
    error : FastLLMError or None
    done : bool
        True once both are final.
    """

    full = False

    def __init__(self, notify: Callable[[], None] | None = None) -> None:
        self.chunks: list[Chunk] = []
        self.error: FastLLMError | None = None
        self.done = False
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._notify = notify

    def put(self, event: Event) -> None:
        """Add an event."""
        if isinstance(event, FastLLMError):
            self.error = event
        else:
            self.chunks.append(event)
            if event.finish_reason is None:
                return
        self.done = True
        self._bell.put(None)
        if self._notify is not None:
            self._notify()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end, at most so long; True when it has come."""
        if not self.done:
            try:
                self._bell.get(timeout=max(timeout_s, 0.0))
            except Empty:
                return self.done
            self._bell.put(None)  # for others who wait for the same answer
        return self.done
