"""StopMatcher: end a stream of text before a stop string, wherever the pieces are cut."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Watches text that arrives in pieces for stop strings.

    The text ends before the stop string that is complete first (the earliest end; among those the
    earliest start). What could still become one is held back, so that no part of a stop string is
    ever shown and the result does not depend on how the text is cut into pieces.

    Parameters
    ----------
    stop : sequence of str
        None of them empty.

    Attributes
    ----------
    stopped : bool
        A stop string was seen; everything after is ignored.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take the next piece and return the text that is certain to be shown."""
        if not self._stop:
            return text
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        cut = len(self._held) - self._longest_beginning()
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Return what was held back: no more text comes, so it is no stop string."""
        shown, self._held = self._held, ""
        return shown

    def _longest_beginning(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        longest = 0
        for s in self._stop:
            for n in range(min(len(s) - 1, len(self._held)), longest, -1):
                if self._held.endswith(s[:n]):
                    longest = n
                    break
        return longest
