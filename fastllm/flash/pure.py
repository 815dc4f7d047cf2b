"""The twin of `fastllm._ext.reader` in plain Python: same names, same rules, no compiler.

Threads of a `ThreadPoolExecutor` call `os.preadv`, which releases the GIL, over the same roads:
page cache, ``O_DIRECT``, buffered. The names are documented in ``fastllm/_ext/reader.pyi``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fastllm.forks import Lock

ALIGN = 4096
_JOB_WORDS = 4  # of a Feeder: fd, direct_fd, offset, nbytes; the function's own follow

_LINUX = sys.platform.startswith("linux")
_SYS_CACHESTAT = 451  # Linux 6.5, the same on every architecture
_seek_lock = Lock()


class Batch:
    """Reads posted together; see ``reader.pyi``."""

    def __init__(self, futures: list[Future[int]], pid: int) -> None:
        self._futures = futures
        self._pid = pid

    def wait(self) -> int:
        """Wait until every read is done; 0 or the first errno."""
        if self._pid != os.getpid() and not all(future.done() for future in self._futures):
            return errno.ECANCELED
        return next((code for code in [f.result() for f in self._futures] if code), 0)

    def __del__(self) -> None:
        if self._pid == os.getpid():
            for future in self._futures:
                with contextlib.suppress(BaseException):  # an interpreter on its way out
                    future.result()


class Pool:
    """Threads that read; see ``reader.pyi``."""

    def __init__(self, num_threads: int = 8, capacity: int = 1024) -> None:
        if num_threads < 1 or capacity < 1 or capacity & (capacity - 1):
            raise ValueError("num_threads must be positive and capacity a power of two")
        self.num_threads = num_threads
        self._executor: ThreadPoolExecutor | None = self._start()
        self._pid = os.getpid()

    def _start(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.num_threads, thread_name_prefix="fastllm-read")

    def submit(
        self,
        fd: int,
        direct_fd: int,
        reads: Sequence[tuple[int, int, int]],
        request_bytes: int = 1 << 20,
    ) -> Batch:
        """Post reads of ``(offset, nbytes, address)`` and return at once."""
        if self._executor is None:
            raise ValueError("the pool is closed")
        if request_bytes < ALIGN or request_bytes % ALIGN:
            raise ValueError(f"request_bytes must be a positive multiple of {ALIGN}")
        for offset, nbytes, address in reads:
            if offset < 0 or nbytes < 0 or offset + nbytes > 1 << 62:
                raise ValueError(f"no file has {nbytes} bytes at offset {offset}")
            if direct_fd >= 0 and (offset | address) % ALIGN:
                raise ValueError(f"offset and address must be multiples of {ALIGN}")
        if self._pid != os.getpid():  # forked: the threads stayed with the parent
            self._executor, self._pid = self._start(), os.getpid()
        futures = [
            self._executor.submit(
                _read, fd, direct_fd, offset + i, min(request_bytes, nbytes - i), address + i
            )
            for offset, nbytes, address in reads
            for i in range(0, nbytes, request_bytes)
        ]
        return Batch(futures, self._pid)

    def close(self) -> None:
        """Finish what is queued and stop the threads."""
        executor, self._executor = self._executor, None
        if executor is not None and self._pid == os.getpid():
            executor.shutdown()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # __init__ refused its arguments
            self.close()


class Feeder:
    """Threads that read and call; see ``reader.pyi``."""

    def __init__(
        self,
        function: int,
        jobs: NDArray[np.int64],
        slots: int,
        slot_bytes: int,
        num_threads: int,
        memory: object = None,
    ) -> None:
        if num_threads < 1 or slot_bytes < 0 or (slots | slot_bytes) % ALIGN:
            raise ValueError(
                f"num_threads must be positive, slots and their size multiples of {ALIGN}"
            )
        if jobs.dtype != "int64" or jobs.ndim != 2 or jobs.shape[1] < _JOB_WORDS:
            raise ValueError(f"jobs must be rows of at least {_JOB_WORDS} int64")
        for _, _, offset, nbytes in jobs[:, :_JOB_WORDS].tolist():
            if not 0 <= offset <= 1 << 62 or not 0 <= nbytes <= slot_bytes - offset % ALIGN:
                raise ValueError(f"{nbytes} bytes at {offset}: a slot has {slot_bytes}")
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
        )
        self.done = 0
        self.failure: tuple[int, int] | None = None
        self._function, self._jobs, self._memory = prototype(function), jobs, memory
        self._slots, self._pid = slots, os.getpid()
        self._next, self._stop, self._lock = 0, False, threading.Lock()
        self._threads: list[threading.Thread] = []
        for number in range(num_threads):
            slot = slots + number * slot_bytes
            thread = threading.Thread(target=self._feed, args=(slot,), name="fastllm-feed")
            try:
                thread.start()
            except RuntimeError:  # a pids limit: fewer is fine
                break
            self._threads.append(thread)

    def _feed(self, slot: int) -> None:
        """Take jobs until there are no more: read into the slot, call with what is there."""
        result, exception = ctypes.c_int64(), ctypes.c_void_p()
        while not self._stop:
            with self._lock:
                number, self._next = self._next, self._next + 1
            if number >= len(self._jobs):
                return
            job = self._jobs[number]
            fd, direct_fd, offset, nbytes = job[:_JOB_WORDS].tolist()
            before = offset % ALIGN
            code = _read(fd, direct_fd, offset - before, nbytes + before, slot) if nbytes else 0
            if code:
                self._fail(number, code)
                return
            words = job.ctypes.data + 8 * _JOB_WORDS
            self._function(
                ctypes.addressof(result), ctypes.addressof(exception), words, slot + before
            )
            with self._lock:
                self.done += 1

    def _fail(self, number: int, code: int) -> None:
        with self._lock:
            self.failure = self.failure or (number, code)
            self._stop = True

    def wait(self) -> bool:
        """Wait a moment; True when all threads have ended."""
        if self._pid != os.getpid():  # forked: the threads stayed with the parent
            if self.done < len(self._jobs):
                self.failure = self.failure or (self.done, errno.ECANCELED)
            return True
        running = [thread for thread in self._threads if thread.is_alive()]
        if running:
            running[0].join(0.1)
            return False
        self._feed(self._slots)  # where no thread could be started, all is left
        return True

    def close(self) -> None:
        """Leave the jobs not begun and wait for the others."""
        self._stop = True
        for thread in self._threads:
            thread.join()
        self._threads, self._memory = [], None

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # __init__ refused its arguments
            self.close()


def _read(fd: int, direct_fd: int, offset: int, need: int, address: int) -> int:
    """Do one request by the best road; 0 or an errno."""
    direct = direct_fd >= 0 and not in_cache(fd, offset, need)
    length = -(-need // ALIGN) * ALIGN if direct else need
    memory = memoryview((ctypes.c_uint8 * length).from_address(address)).cast("B")
    try:
        if direct:
            try:
                _fill(direct_fd, memory, offset, need, ALIGN)
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL: this descriptor cannot
                    raise
            else:
                return 0
        _fill(fd, memory[:need], offset, need, 1)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def in_cache(fd: int, offset: int, nbytes: int) -> bool:
    """Return whether the page cache holds all of the range; False where nobody can tell."""
    if not _LINUX:
        return False
    extent = (ctypes.c_uint64 * 2)(offset, nbytes)
    pages = (ctypes.c_uint64 * 5)()
    if ctypes.CDLL(None).syscall(_SYS_CACHESTAT, fd, extent, pages, 0):
        return False
    page = mmap.PAGESIZE
    return bool(pages[0] >= (offset + nbytes - 1) // page - offset // page + 1)


def _fill(fd: int, memory: memoryview, offset: int, need: int, align: int) -> None:
    """Read until `need` bytes are there; a short read is continued at a whole block."""
    done = stalls = 0
    while done < need:
        count = read_into(fd, memory[done:], offset + done)
        if count == 0 or stalls == 3:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        done += count
        if done < need and done % align:
            done -= done % align
            stalls = stalls + 1 if count < align else 0


def read_into(fd: int, memory: memoryview, offset: int) -> int:
    """Read once from `offset` into `memory`; the number of bytes, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [memory], offset)
    if hasattr(os, "pread"):
        chunk = os.pread(fd, len(memory), offset)
    else:  # Windows: the descriptor has one position for all threads
        with _seek_lock.here:
            os.lseek(fd, offset, os.SEEK_SET)
            chunk = os.read(fd, len(memory))
    memory[: len(chunk)] = chunk
    return len(chunk)
