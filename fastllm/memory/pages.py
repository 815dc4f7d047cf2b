"""Huge pages from the system: who maps them, the compiled extension or its twin in Python."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import Protocol

from fastllm._ext import WANTED

HUGE_BYTES = 2 << 20  # mappings are multiples of a huge page


def mapped(nbytes: int) -> int:
    """Return what a mapping of `nbytes` takes: whole huge pages, at least one."""
    return max(-(-nbytes // HUGE_BYTES), 1) * HUGE_BYTES


class Pages(Protocol):
    """What `fastllm._ext.reader` and `PurePages` both offer; see ``reader.pyi``."""

    def huge_alloc(self, nbytes: int, touch: bool = False) -> int:
        """Map memory for huge pages."""

    def huge_free(self, address: int, nbytes: int) -> None:
        """Unmap it."""


class PurePages:
    """The twin: same names, same rules, no compiler."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def huge_alloc(self, nbytes: int, touch: bool = False) -> int:
        """Map private memory for huge pages and return its address, a multiple of 2 MiB."""
        if nbytes < 0:
            raise ValueError("nbytes must not be negative")
        size = mapped(nbytes)
        try:
            if hasattr(mmap, "MAP_PRIVATE"):
                region = mmap.mmap(-1, size + HUGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            else:
                region = mmap.mmap(-1, size + HUGE_BYTES)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"cannot map {nbytes} bytes") from error
        start = ctypes.addressof(ctypes.c_uint8.from_buffer(region))
        address = -(-start // HUGE_BYTES) * HUGE_BYTES
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a wish: kernels without it still give small pages
                region.madvise(mmap.MADV_HUGEPAGE, address - start, size)
        if touch:
            ctypes.memset(address, 0, size)
        self._maps[address] = region
        return address

    def huge_free(self, address: int, nbytes: int) -> None:  # noqa: ARG002  the extension needs it
        """Give back what `huge_alloc` returned."""
        self._maps.pop(address).close()


def choose() -> Pages:
    """Return who maps memory in this process."""
    if WANTED:
        try:
            from fastllm._ext import reader
        except ImportError:
            pass
        else:
            return reader
    return PurePages()


PAGES = choose()
