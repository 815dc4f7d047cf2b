"""Types and documentation of the compiled reader; `fastllm.flash.pure` has the same names."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class Batch:
    """Reads posted together. Dropping it waits for them, so the memory may be freed afterwards."""

    def wait(self) -> int:
        """Wait, GIL released, until every read is done; 0 or the first errno.

        ENODATA means that the file ends before the bytes do, ECANCELED that the process was forked
        after the batch was posted. Ctrl-C interrupts the wait, not the reads.
        """

class Pool:
    """Threads that read.

    Parameters
    ----------
    num_threads : int
        At most this many; fewer where the system refuses, down to none (then `submit` reads).
    capacity : int
        Requests that may be queued, a power of two. `submit` does what does not fit by itself.
    """

    num_threads: int

    def __init__(self, num_threads: int = 8, capacity: int = 1024) -> None: ...
    def submit(
        self,
        fd: int,
        direct_fd: int,
        reads: Sequence[tuple[int, int, int]],
        request_bytes: int = 1 << 20,
    ) -> Batch:
        """Post reads and return at once.

        Parameters
        ----------
        fd : int
            Descriptor of the file, buffered; used for what the page cache holds.
        direct_fd : int
            The same file opened with ``O_DIRECT``, or -1.
        reads : sequence of (offset, nbytes, address)
            Bytes of the file and where to put them. With `direct_fd`, offset and address are
            multiples of 4096 and there is room for `nbytes` rounded up to 4096. The memory must
            stay until the batch is done.
        request_bytes : int
            Longer reads are cut into requests of this size, a multiple of 4096.

        Raises
        ------
        ValueError
            A number is out of range or not aligned, or the pool is closed.
        """

    def close(self) -> None:
        """Finish what is queued and stop the threads. May be called twice."""

class Feeder:
    """Threads that read ranges of files, each handing what it has read to a compiled function.

    Parameters
    ----------
    function : int
        Address of ``int32 f(int64 *result, void **exception, int64 words, int64 bytes)``, Numba's
        convention for a function of two addresses: of the job's words, and of the bytes that were
        read, which are gone when it returns. It must not need the GIL.
    jobs : int64[num_jobs, 4 + n]
        Descriptors as in ``Pool.submit`` (fd, direct_fd), offset, nbytes, and n words for the
        function. Begun in this order. The bytes' address is `offset` modulo 4096.
    slots : int
        Address of ``num_threads * slot_bytes`` bytes, a multiple of 4096.
    slot_bytes : int
        Room for the whole 4 KiB blocks around a range.
    num_threads : int
        At most this many, as in `Pool`; without any, `wait` does the jobs.
    memory : object
        Kept alive as long as a thread may use it, as `jobs` is.

    Attributes
    ----------
    done : int
        Jobs done so far.
    failure : tuple of (int, int) or None
        (job, errno) of the first read that failed, once `wait` has returned True. Jobs that had
        not begun by then are left. ECANCELED: the process was forked meanwhile.

    Raises
    ------
    ValueError
        A number is out of range or not aligned.
    """

    @property
    def done(self) -> int: ...
    @property
    def failure(self) -> tuple[int, int] | None: ...
    def __init__(
        self,
        function: int,
        jobs: NDArray[np.int64],
        slots: int,
        slot_bytes: int,
        num_threads: int,
        memory: object = None,
    ) -> None: ...
    def wait(self) -> bool:
        """Wait, GIL released, 0.1 s at most; True when all threads have ended.

        Ctrl-C interrupts the wait, not the threads.
        """

    def close(self) -> None:
        """Leave the jobs not begun and wait for the others. May be called twice."""

def huge_alloc(nbytes: int, touch: bool = False) -> int:
    """Map private memory for huge pages and return its address.

    Parameters
    ----------
    nbytes : int
        Rounded up to 2 MiB, at least 2 MiB; the address is a multiple of 2 MiB. Reads as zeros.
    touch : bool
        Back it with pages now, so that a lack of memory shows here and not later.

    Raises
    ------
    MemoryError
        The system refuses.
    """

def huge_free(address: int, nbytes: int) -> None:
    """Give back what `huge_alloc` returned for the same `nbytes`."""
