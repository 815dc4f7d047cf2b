"""FileReader: a file as a stream of ranges, read ahead of whoever consumes them.

The ranges of a stream go through one ring of huge-page memory. Reads of the next ranges are in
flight while the caller packs the current one; how many is limited by the ring, not by a count, so
that small ranges keep the disk as busy as large ones. A disk that takes ``10 us + bytes / 3 GB/s``
a request is near its rate from 512 KiB on and with 8 requests in flight, hence the defaults.

Each range is read as the whole 4 KiB blocks around it, because ``O_DIRECT`` wants that; tensors of
a GGUF file are aligned to 32 bytes only.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import ReadError
from fastllm.flash import pure
from fastllm.flash.backend import BACKEND, Backend, Batch
from fastllm.memory.arena import Arena

ALIGN = 4096
REQUEST_BYTES = 1 << 20
MAX_BATCHES = 64  # ranges in flight; more would only cost memory for bookkeeping


def ring_bytes(slot_bytes: int, num_slots: int = 4) -> int:
    """Return the size of the ring that `FileReader.stream` reads through."""
    return (-(-slot_bytes // ALIGN) + 2) * ALIGN * num_slots


class FileReader:
    """An open file and the threads that read it.

    One thread at a time may use a reader; the threads inside never hold the GIL.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    num_threads : int
        Reads in flight.
    backend : Backend, optional
        Who reads; by default what `fastllm.flash.backend` chose.

    Attributes
    ----------
    path : str
        The file's name, for messages.
    direct : bool
        Whether what the page cache does not hold is read past it (``O_DIRECT``).

    Raises
    ------
    ReadError
        The file cannot be opened.

    Examples
    --------
    >>> with FileReader("model.gguf") as reader:
    ...     for index, chunk in reader.stream([(4096, 1 << 20), (1 << 22, 1 << 20)]):
    ...         pack(index, chunk)
    """

    def __init__(
        self, path: str | os.PathLike[str], num_threads: int = 8, *, backend: Backend = BACKEND
    ) -> None:
        self.path = os.fspath(path)
        self._backend = backend
        self._pool = backend.Pool(num_threads)
        try:
            self._fd, self._direct_fd = open_both(self.path)
        except ReadError:
            self._pool.close()
            raise
        self._closed = False

    @property
    def direct(self) -> bool:
        """Whether the file could be opened with ``O_DIRECT``."""
        return self._direct_fd >= 0

    def stream(
        self,
        ranges: Sequence[tuple[int, int]],
        slot_bytes: int = 4 << 20,
        num_slots: int = 4,
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Read ranges of the file in the order given.

        Parameters
        ----------
        ranges : sequence of (offset, nbytes)
            Anywhere in the file, none longer than `slot_bytes`.
        slot_bytes, num_slots : int
            The ring holds ``num_slots * slot_bytes`` (and 8 KiB a slot for alignment).

        Yields
        ------
        index : int
            Position in `ranges`.
        chunk : uint8[nbytes], read-only
            The bytes; overwritten when the next range is asked for. Its address is `offset`
            modulo 4096.

        Raises
        ------
        ReadError
            The disk refuses, or the file ends before the range does; names file and offset.
        BudgetError
            There is no memory for the ring.
        ValueError
            A range is negative or longer than a slot, or the reader is closed.
        """
        if slot_bytes < 1 or num_slots < 1:
            raise ValueError("slot_bytes and num_slots must be positive")
        for offset, nbytes in ranges:
            if offset < 0 or not 0 <= nbytes <= slot_bytes:
                raise ValueError(f"range of {nbytes} bytes at {offset}: a slot has {slot_bytes}")
        self._check_open()
        return self._stream(ranges, ring_bytes(slot_bytes, num_slots))

    def _stream(
        self, ranges: Sequence[tuple[int, int]], ring_bytes: int
    ) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
        # Not closed but dropped: a caller that holds on to a chunk keeps the ring mapped.
        arena = Arena(ring_bytes)
        base = arena.alloc(ring_bytes)
        ring = _Ring(ring_bytes)
        in_flight: deque[Batch] = deque()
        posted = 0
        try:
            for index, (offset, nbytes) in enumerate(ranges):
                while posted < len(ranges) and len(in_flight) < MAX_BATCHES:
                    start, size = ranges[posted]
                    before, span = _blocks(start, size)
                    place = ring.put(span)
                    if place is None:
                        break
                    need = before + size if size else 0
                    in_flight.append(self._post(start - before, need, base + place))
                    posted += 1
                code = in_flight[0].wait()
                in_flight.popleft()
                if code:
                    raise self._error(offset, nbytes, code)
                chunk = arena.view(base + ring.first + offset % ALIGN, nbytes)
                chunk.flags.writeable = False
                yield index, chunk
                ring.pop()
        finally:
            _settle(in_flight)

    def _post(self, offset: int, nbytes: int, address: int) -> Batch:
        self._check_open()
        read = (offset, nbytes, address)
        return self._pool.submit(self._fd, self._direct_fd, [read], REQUEST_BYTES)

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Read one range into memory of its own, through the page cache.

        Meant for small things: norm vectors, rows of an embedding.

        Parameters
        ----------
        offset, nbytes : int
            Where and how much.

        Returns
        -------
        uint8[nbytes]

        Raises
        ------
        ReadError
            The disk refuses, or the file ends before the range does; names file and offset.
        """
        if offset < 0 or nbytes < 0:
            raise ValueError(f"no file has {nbytes} bytes at offset {offset}")
        self._check_open()
        out = np.empty(nbytes, np.uint8)
        memory, done = out.data, 0
        while done < nbytes:
            try:
                count = pure.read_into(self._fd, memory[done:], offset + done)
            except OSError as error:
                raise self._error(offset, nbytes, error.errno or errno.EIO) from error
            if count == 0:
                raise self._error(offset, nbytes, errno.ENODATA)
            done += count
        return out

    def close(self) -> None:
        """Stop the threads and close the file. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._pool.close()
        os.close(self._fd)
        if self.direct:
            os.close(self._direct_fd)

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # __init__ failed half way
            self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.path}: the reader is closed")

    def _error(self, offset: int, nbytes: int, code: int) -> ReadError:
        return read_error(self.path, self._fd, offset, nbytes, code)


class _Ring:
    """Where in the ring each range lies: first in, first out, every range in one piece."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._live: deque[tuple[int, int]] = deque()

    @property
    def first(self) -> int:
        """Start of the oldest range."""
        return self._live[0][0]

    def put(self, span: int) -> int | None:
        """Reserve `span` bytes behind the newest range; None while there is no room."""
        if not self._live:
            start = 0
        else:
            (tail, _), (last, last_span) = self._live[0], self._live[-1]
            start = last + last_span
            if last >= tail and start + span > self.nbytes:
                start, last = 0, -1  # not wrapped yet: go on at the beginning
            if last < tail and start + span > tail:
                return None
        self._live.append((start, span))
        return start

    def pop(self) -> None:
        """Release the oldest range."""
        self._live.popleft()


def _blocks(offset: int, nbytes: int) -> tuple[int, int]:
    """Return how far before `offset` its block starts, and the bytes of all blocks of the range.

    An empty range takes a block too: a ring position of its own keeps the order plain.
    """
    before = offset % ALIGN
    return before, max(-(-(before + nbytes) // ALIGN), 1) * ALIGN


def _settle(in_flight: deque[Batch]) -> None:
    """Wait for reads that nobody wants any more: until then they write into the ring.

    Ctrl-C is put off until they are done; memory that is read into must not be given away.
    """
    interrupt: BaseException | None = None
    while in_flight:
        try:
            in_flight[0].wait()
        except BaseException as error:  # noqa: BLE001  raised below
            interrupt = error
        else:
            in_flight.popleft()
    if interrupt is not None:
        raise interrupt


def read_error(path: str, fd: int, offset: int, nbytes: int, code: int) -> ReadError:
    """Make the error of a read that ended with errno `code`."""
    what = f"{path}: cannot read {nbytes} bytes at offset {offset}"
    if code == errno.ENODATA:
        size = os.fstat(fd).st_size
        text = f"{what}: the file ends at {size}; it was cut short, fetch it again"
    elif code == errno.ECANCELED:
        text = f"{what}: the process was forked meanwhile; start the stream in the child"
    else:
        text = f"{what}: {os.strerror(code)}; check the disk, then fetch the file again"
    error = ReadError(text)
    error.errno = code
    return error


def open_both(path: str) -> tuple[int, int]:
    """Return descriptors of a file, through the page cache and past it (or -1).

    Raises
    ------
    ReadError
        The file cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        raise ReadError(f"{path}: cannot be opened: {error.strerror}") from error
    return fd, _open_direct(path, flags, fd)


def _open_direct(path: str, flags: int, fd: int) -> int:
    """Open `path` again with ``O_DIRECT``; -1 where the system or the file system has none."""
    if not hasattr(os, "O_DIRECT"):
        return -1
    try:
        direct_fd = os.open(path, flags | os.O_DIRECT)
    except OSError:
        return -1
    if os.path.sameopenfile(fd, direct_fd):
        # Little is read through the cache from now on; 8 MiB of read-ahead would be waste.
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return direct_fd
    os.close(direct_fd)  # the file was replaced between the two calls
    return -1
