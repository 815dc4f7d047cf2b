"""Which implementation reads: the compiled extension or its twin in Python.

``FASTLLM_PURE=1`` asks for the twin; without the extension there is only the twin. ``fastllm
doctor`` shows `NAME`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastllm._ext import WANTED
from fastllm.flash import pure


class Batch(Protocol):
    """Reads posted together."""

    def wait(self) -> int:
        """Wait for all of them; 0 or the first errno."""


class Pool(Protocol):
    """Threads that read."""

    def submit(
        self,
        fd: int,
        direct_fd: int,
        reads: Sequence[tuple[int, int, int]],
        request_bytes: int = 1 << 20,
    ) -> Batch:
        """Post reads of ``(offset, nbytes, address)``."""

    def close(self) -> None:
        """Finish what is queued and stop the threads."""


class Backend(Protocol):
    """What `fastllm._ext.reader` and `fastllm.flash.pure` both offer; see ``reader.pyi``."""

    def Pool(self, num_threads: int = 8, capacity: int = 1024) -> Pool:
        """Start a pool of threads."""


def choose() -> tuple[str, Backend]:
    """Return the name ("native" or "pure") and the implementation this process uses."""
    if WANTED:
        try:
            from fastllm._ext import reader
        except ImportError:
            pass
        else:
            return "native", reader
    return "pure", pure


NAME, BACKEND = choose()
