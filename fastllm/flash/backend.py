"""Which implementation reads and allocates: the compiled extension or its twin in Python.

``FASTLLM_PURE=1`` asks for the twin; without the extension there is only the twin. ``fastllm
doctor`` shows `NAME`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

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

    def huge_alloc(self, nbytes: int, touch: bool = False) -> int:
        """Map memory for huge pages."""

    def huge_free(self, address: int, nbytes: int) -> None:
        """Unmap it."""


def choose() -> tuple[str, Backend]:
    """Return the name ("native" or "pure") and the implementation this process uses."""
    if os.environ.get("FASTLLM_PURE", "0") in ("", "0"):
        try:
            from fastllm._ext import reader
        except ImportError:
            pass
        else:
            return "native", reader
    return "pure", pure


NAME, BACKEND = choose()
