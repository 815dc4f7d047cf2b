"""The crew of this process: threads in compiled code that all models share, step by step.

A model has a seat. The first step of a new seat makes a crew that fits whoever has one, and ends
the one before; so does the first step in a forked child, which has no threads. Who may run when is
decided in `fastllm.kernels.crew`.

Callers may be interrupted at any bytecode. Nothing is lent to Python: a step is one call into
compiled code, and a crew that ended in the meantime only says so.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from fastllm.environment import switch
from fastllm.forks import Lock
from fastllm.kernels.crew import Crew as Block
from fastllm.kernels.crew import crew_bytes
from fastllm.kernels.interpreter_codes import END, GONE, RUN, WORK
from fastllm.kernels.words import Context
from fastllm.machine.cpus import default_threads

Entry = Callable[[int, int, int], int]

# How often a waiting thread looks before it sleeps; a look is 25 ns on Zen 4,
# about 45 on Sapphire Rapids.
BARRIER_SPIN = 20_000  # 0.5 to 1 ms: longer than any op that threads wait for when nobody is late
CROWDED_SPIN = 200  # more threads than CPUs: the partner may not be running at all
GATE_SPIN = 16_000  # 0.4 ms: longer than Python takes between two tokens of an answer
BARRIER_BYTES = 256


class Seat:
    """A model's place in the crew; dropped or closed, it is free.

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
        step or of `own_thread`. ``FASTLLM_PIN=0`` leaves threads where the scheduler puts them.
    """

    def __init__(
        self, entry: Entry, context: NDArray[np.int64], num_threads: int, cpus: list[int]
    ) -> None:
        self._entry, self._context, self._address = entry, context, context.ctypes.data
        self._barrier = _aligned(BARRIER_BYTES)
        crowded = num_threads > len(cpus)
        context[Context.THREADS] = num_threads
        context[Context.SPIN] = CROWDED_SPIN if crowded else BARRIER_SPIN
        context[Context.SYNC] = self._barrier.ctypes.data
        pinned = num_threads == len(cpus) > 1 and switch("FASTLLM_PIN") is not False
        pins = tuple(cpus) if pinned and hasattr(os, "sched_setaffinity") else ()
        self._needs = _Needs(num_threads, CROWDED_SPIN if crowded else GATE_SPIN, pins)
        self._crew: _Crew | None = None
        self._owner = 0
        _taken.add(self._needs)
        # At exit nothing is left to do: idle workers sleep in memory that stays.
        self._leave = weakref.finalize(self, _leave, self._needs)
        self._leave.atexit = False

    @contextlib.contextmanager
    def own_thread(self) -> Iterator[None]:
        """Inside the block the calling thread does little but `run`: it stays on its CPU."""
        with _on(self._needs.pins[:1]):
            owner, self._owner = self._owner, threading.get_ident()
            try:
                yield
            finally:
                self._owner = owner

    def run(self) -> int:
        """Run the op table once; returns when all threads have left it.

        Returns
        -------
        int
            0, or the `kernels.words.Failure` that ended it early.
        """
        if not self._needs.pins or self._owner == threading.get_ident():
            return self._run()
        with _on(self._needs.pins[:1]):
            return self._run()

    def _run(self) -> int:
        crew = _crew
        while True:
            if crew is None or self._needs not in crew.needs:
                crew = self._join()
            if crew is not self._crew:
                self._barrier[:] = 0  # a fork may have left somebody waiting there
                self._crew = crew
            result = crew.entry(RUN, self._address, crew.address)
            if result != GONE:
                return result
            crew = self._join(gone=crew)

    def _join(self, gone: _Crew | None = None) -> _Crew:
        """A crew that this seat belongs to."""
        global _crew
        with _assembling.here:
            before = _crew
            if before is not None and before is not gone and self._needs in before.needs:
                return before
            _crew = after = _Crew(self._entry, frozenset({*_taken, self._needs}))
            if before is not None:
                before.end()
            return after

    def close(self) -> None:
        """Leave; the last to do so ends the crew and waits for its threads."""
        ended = self._leave()
        for thread in ended.threads if ended else ():
            thread.join()


class _Needs:
    """What a seat needs of the crew."""

    def __init__(self, num_threads: int, spin: int, pins: tuple[int, ...]) -> None:
        self.num_threads, self.spin, self.pins = num_threads, spin, pins


class _Crew:
    """Threads and their block; made for some seats, and never changed."""

    def __init__(self, entry: Entry, needs: frozenset[_Needs]) -> None:
        self.entry, self.needs = entry, needs
        most = max(each.num_threads for each in needs)
        # Steps run side by side while there is a core for each of their threads. So those that run
        # together have no more threads than cores, or it is one alone; and each has a caller.
        cores = most if len(needs) == 1 else default_threads()
        num_workers = min(sum(each.num_threads - 1 for each in needs), max(cores, most) - 1)
        block = _aligned(crew_bytes(num_workers))
        block[Block.FREE :][:4].view(np.int32)[0] = cores
        for place, value in (
            (Block.CPUS, cores),
            (Block.WORKERS, num_workers),
            (Block.SPIN, min(each.spin for each in needs)),
        ):
            block[place:][:8].view(np.int64)[0] = value
        self.address = block.ctypes.data
        self.block = block
        self.threads: list[threading.Thread] = []
        pins = max((each.pins for each in needs), key=len)
        try:
            for number in range(1, num_workers + 1):
                # More than there are CPUs, or as their starter is: neither stays on one.
                self._start(number, pins[number : number + 1] or pins)
        except BaseException:
            self.end()
            raise

    def _start(self, number: int, pins: tuple[int, ...]) -> None:
        thread = threading.Thread(
            target=_live,
            args=(self.entry, self.block, number - 1, pins),
            name=f"fastllm-{number}",
            daemon=True,
        )
        thread.start()
        self.threads.append(thread)

    def end(self) -> None:
        """Let the threads return once every step is over."""
        self.entry(END, self.address, 0)


def _live(entry: Entry, block: NDArray[np.uint8], worker: int, pins: tuple[int, ...]) -> None:
    """Be a worker until the crew ends; holds the block for as long."""
    _pin(pins)
    entry(WORK, block.ctypes.data, worker)


@contextlib.contextmanager
def _on(cpus: tuple[int, ...]) -> Iterator[None]:
    """Inside the block the calling thread is on one of these CPUs, if any are named."""
    before = os.sched_getaffinity(0) if cpus else ()
    try:
        _pin(cpus)
        yield
    finally:
        _pin(before)


def _pin(cpus: Collection[int]) -> None:
    """Move the calling thread, if CPUs are named; one that has gone meanwhile is no error."""
    if cpus:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cpus)


def _aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zeros that begin on a cache line."""
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


_crew: _Crew | None = None
_taken: set[_Needs] = set()
_assembling = Lock()


def _leave(needs: _Needs) -> _Crew | None:
    """Give a seat back, in a finalizer, too: never waits. The crew, if nobody is left in it."""
    _taken.discard(needs)
    crew = _crew
    if crew is None or not crew.needs.isdisjoint(_taken):
        return None
    crew.end()  # at once: those who could run a step are gone
    return crew


def _after_fork() -> None:
    """Begin without a crew: its threads stayed with the parent."""
    global _crew
    _crew = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
