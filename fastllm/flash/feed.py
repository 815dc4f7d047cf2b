"""Feed: ranges of files, read by threads that hand each to a compiled function themselves.

A thread reads a piece and packs it while it is in its core's cache, with no Python in between: a
load takes all cores, and leaves the interpreter to the rest of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fastllm.flash.backend import BACKEND, Backend
from fastllm.flash.reader import ALIGN, open_both, read_error
from fastllm.memory.arena import Arena


class Job(NamedTuple):
    """A range, and what the function is told about it.

    Attributes
    ----------
    path : str
    offset, nbytes : int
    words : sequence of int
        The function gets their address; all jobs of a feed have the same number.
    """

    path: str
    offset: int
    nbytes: int
    words: Sequence[int]


def slots_bytes(nbytes: int, num_threads: int) -> int:
    """Return the memory that `num_threads` threads read ranges of up to `nbytes` bytes into."""
    return (-(-nbytes // ALIGN) + 1) * ALIGN * num_threads


class Feed:
    """A load under way: it begins with the constructor.

    Parameters
    ----------
    function : int
        Address of ``f(words, bytes)``, addresses both; see ``Feeder`` in ``_ext/reader.pyi``. The
        address of the bytes is `offset` modulo 4096.
    jobs : sequence of Job
        Begun in this order.
    num_threads : int
        Threads that read and call.
    memory : object
        What the function reads and writes: kept alive until the threads have ended.

    Raises
    ------
    ReadError
        A file cannot be opened.
    BudgetError
        There is no memory to read into.
    """

    def __init__(
        self,
        function: int,
        jobs: Sequence[Job],
        num_threads: int,
        memory: object = None,
        *,
        backend: Backend = BACKEND,
    ) -> None:
        self._jobs = jobs
        self._files: dict[str, tuple[int, int]] = {}
        slot = slots_bytes(max((job.nbytes for job in jobs), default=0), 1)
        self._slots = Arena(slot * num_threads)
        try:
            for path in dict.fromkeys(job.path for job in jobs):
                self._files[path] = open_both(path)
            rows = [
                (*self._files[path], offset, nbytes, *words) for path, offset, nbytes, words in jobs
            ]
            self._feeder = backend.Feeder(
                function,
                np.array(rows, np.int64).reshape(len(jobs), -1 if jobs else 4),
                self._slots.alloc(slot * num_threads, ALIGN),
                slot,
                num_threads,
                memory,
            )
        except BaseException:
            self._release()
            raise

    def wait(self, progress: Callable[[float], None] | None = None) -> None:
        """Wait until all is done, and close; Ctrl-C and errors leave what has not begun.

        Parameters
        ----------
        progress : callable, optional
            Called with the share of the jobs that are done, now and then.

        Raises
        ------
        ReadError
            The disk refuses, or a file ends before a range does; names file and offset.
        """
        try:
            while not self._feeder.wait():
                if progress:
                    progress(self._feeder.done / len(self._jobs))
            failure = self._feeder.failure
            if failure:
                path, offset, nbytes, _ = self._jobs[failure[0]]
                raise read_error(path, self._files[path][0], offset, nbytes, failure[1])
        finally:
            self.close()

    def close(self) -> None:
        """Leave what has not begun, and wait for the rest. May be called twice."""
        self._feeder.close()
        self._release()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # __init__ failed half way
            self.close()

    def _release(self) -> None:
        self._slots.close()
        for descriptors in self._files.values():
            for fd in descriptors:
                if fd >= 0:
                    os.close(fd)
        self._files = {}
