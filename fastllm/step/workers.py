"""The threads that run the step: thread 0 is the caller, the others live in compiled code."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels.interpreter_codes import RUN, STOP, WORK
from fastllm.kernels.words import Context

Entry = Callable[[int, int, int], int]

# How often a waiting thread looks before it sleeps; a look is 25 ns on Zen 4,
# about 45 on Sapphire Rapids.
BARRIER_SPIN = 20_000  # 0.5 to 1 ms: longer than any op that threads wait for when nobody is late
CROWDED_SPIN = 200  # more threads than CPUs: the partner may not be running at all
GATE_SPIN = 4_000  # 0.1 ms: an idle engine sleeps at once


class Workers:
    """Runs the op table with `num_threads` threads.

    Workers are daemon threads parked on a futex between steps, with the GIL released. After a fork
    they are started anew in the child, on first use.

    Parameters
    ----------
    entry : callable
        The compiled unit "step".
    context : int64[Context.WORDS]
        The context block; its address must stay what it is.
    num_threads : int
    cpus : list of int
        CPUs this process may use. Fewer than threads: waiting is short, since a partner may not be
        running at all. As many as threads: each thread gets its own, the caller for the length of a
        step. ``FASTLLM_PIN=0`` leaves threads where the scheduler puts them.
    """

    def __init__(
        self, entry: Entry, context: NDArray[np.int64], num_threads: int, cpus: list[int]
    ) -> None:
        crowded = num_threads > len(cpus)
        pinned = num_threads == len(cpus) > 1 and os.environ.get("FASTLLM_PIN") != "0"
        context[Context.THREADS] = num_threads
        context[Context.SPIN] = CROWDED_SPIN if crowded else BARRIER_SPIN
        context[Context.GATE_SPIN] = CROWDED_SPIN if crowded else GATE_SPIN
        pins = cpus if pinned and hasattr(os, "sched_setaffinity") else []
        self._crew = _Crew(entry, context, num_threads, pins)
        # dropped without `close`, the threads must not outlive what they work on
        self._stop = weakref.finalize(self, _Crew.stop, self._crew)

    def run(self) -> int:
        """Run the op table once; returns when all threads have passed its last barrier.

        Returns
        -------
        int
            0, or the `kernels.words.Failure` that ended it early.
        """
        return self._crew.run()

    def close(self) -> None:
        """Let the workers return and wait for them; in a forked child there are none."""
        self._stop()


class _Crew:
    """The threads of one process and what they share; knows nothing of who owns it."""

    def __init__(
        self, entry: Entry, context: NDArray[np.int64], num_threads: int, pins: list[int]
    ) -> None:
        self.entry, self.context, self.pins = entry, context, pins
        self.num_threads, self.pid = num_threads, 0
        self.area = np.zeros(0, np.int32)
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        """Give this process its own sync area and threads."""
        self.area = np.zeros(256, np.int32)
        start = (-self.area.ctypes.data % 64) // 4
        self.context[Context.SYNC] = self.area.ctypes.data + 4 * start
        self.pid = os.getpid()
        self.threads = [
            threading.Thread(
                target=_live,
                args=(self.entry, self.context, self.area, tid, self.pins[tid : tid + 1]),
                name=f"fastllm-{tid}",
                daemon=True,
            )
            for tid in range(1, self.num_threads)
        ]
        for thread in self.threads:
            thread.start()

    def run(self) -> int:
        if self.pid != os.getpid():
            self.start()
        address = self.context.ctypes.data
        if not self.pins:
            return self.entry(RUN, address, 0)
        before = os.sched_getaffinity(0)
        _pin(self.pins[:1])
        try:
            return self.entry(RUN, address, 0)
        finally:
            _pin(before)

    def stop(self) -> None:
        if self.pid == os.getpid() and self.threads:
            self.entry(STOP, self.context.ctypes.data, 0)
            for thread in self.threads:
                thread.join()
        self.threads, self.pid = [], 0


def _live(
    entry: Entry,
    context: NDArray[np.int64],
    area: NDArray[np.int32],  # noqa: ARG001  kept alive as long as a worker looks at it
    tid: int,
    pins: list[int],
) -> None:
    """Be worker `tid` until `_Crew.stop`."""
    if pins:
        _pin(pins)
    entry(WORK, context.ctypes.data, tid)


def _pin(cpus: Iterable[int]) -> None:
    """Move the calling thread; a CPU that has gone meanwhile is no error."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cpus)
