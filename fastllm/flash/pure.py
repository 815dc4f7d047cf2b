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

ALIGN = 4096

_LINUX = sys.platform.startswith("linux")
_SYS_CACHESTAT = 451  # Linux 6.5, the same on every architecture
_seek_lock = threading.Lock()


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
        with _seek_lock:
            os.lseek(fd, offset, os.SEEK_SET)
            chunk = os.read(fd, len(memory))
    memory[: len(chunk)] = chunk
    return len(chunk)
