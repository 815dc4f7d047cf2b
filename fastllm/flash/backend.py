"""Which implementation reads: the compiled extension or its twin in Python.

``FASTLLM_PURE=1`` asks for the twin; without the extension there is only the twin. ``fastllm
doctor`` shows `NAME`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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


class Feeder(Protocol):
    """Threads that read and call."""

    @property
    def done(self) -> int:
        """Jobs done so far."""

    @property
    def failure(self) -> tuple[int, int] | None:
        """(job, errno) of the first read that failed, once all threads have ended."""

    def wait(self) -> bool:
        """Wait a moment; True when all threads have ended."""

    def close(self) -> None:
        """Leave the jobs not begun and wait for the others."""


class Backend(Protocol):
    """What `fastllm._ext.reader` and `fastllm.flash.pure` both offer; see ``reader.pyi``."""

    def Pool(self, num_threads: int = 8, capacity: int = 1024) -> Pool:
        """Start a pool of threads."""

    def Feeder(
        self,
        function: int,
        jobs: NDArray[np.int64],
        slots: int,
        slot_bytes: int,
        num_threads: int,
        memory: object = None,
    ) -> Feeder:
        """Start threads that read ranges and call a compiled function with each."""


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
