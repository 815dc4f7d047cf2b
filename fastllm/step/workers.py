"""The threads that run the step: thread 0 is the caller, the others live in compiled code."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels.interpreter_codes import RUN, STOP, WORK
from fastllm.kernels.words import Context

Entry = Callable[[int, int, int], int]

# How often a waiting thread looks before it sleeps; a look is about 25 ns (measured).
BARRIER_SPIN = 20_000  # 0.5 ms: longer than any op that threads wait for when nobody is late
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
        running at all. As many as threads: each thread gets its own, or the scheduler sometimes
        stacks two on one (seen: half the speed); the caller only for the length of a step.
        ``FASTLLM_PIN=0`` leaves threads where the scheduler puts them.
    """

    def __init__(
        self, entry: Entry, context: NDArray[np.int64], num_threads: int, cpus: list[int]
    ) -> None:
        self._entry, self._context = entry, context
        self._num_threads = num_threads
        crowded = num_threads > len(cpus)
        pinned = num_threads == len(cpus) > 1 and os.environ.get("FASTLLM_PIN") != "0"
        self._pins = cpus if pinned and hasattr(os, "sched_setaffinity") else []
        context[Context.THREADS] = num_threads
        context[Context.SPIN] = CROWDED_SPIN if crowded else BARRIER_SPIN
        context[Context.GATE_SPIN] = CROWDED_SPIN if crowded else GATE_SPIN
        self._area = np.zeros(0, np.int32)
        self._threads: list[threading.Thread] = []
        self._pid = 0

    def _start(self) -> None:
        """Give this process its own sync area and threads."""
        area = np.zeros(256, np.int32)
        start = (-area.ctypes.data % 64) // 4
        self._area = area
        self._context[Context.SYNC] = area.ctypes.data + 4 * start
        self._pid = os.getpid()
        address = self._context.ctypes.data
        self._threads = [
            threading.Thread(
                target=self._live, args=(address, tid), name=f"fastllm-{tid}", daemon=True
            )
            for tid in range(1, self._num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _live(self, address: int, tid: int) -> None:
        """Be a worker until `close`."""
        if self._pins:
            _pin({self._pins[tid]})
        self._entry(WORK, address, tid)

    def run(self) -> None:
        """Run the op table once; returns when all threads have passed its last barrier."""
        if self._pid != os.getpid():
            self._start()
        if not self._pins:
            self._entry(RUN, self._context.ctypes.data, 0)
            return
        before = os.sched_getaffinity(0)
        _pin({self._pins[0]})
        try:
            self._entry(RUN, self._context.ctypes.data, 0)
        finally:
            _pin(before)

    def close(self) -> None:
        """Let the workers return and wait for them; in a forked child there are none."""
        if self._pid == os.getpid() and self._threads:
            self._entry(STOP, self._context.ctypes.data, 0)
            for thread in self._threads:
                thread.join()
        self._threads = []
        self._pid = 0


def _pin(cpus: set[int]) -> None:
    """Move the calling thread; a CPU that has gone meanwhile is no error."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cpus)
