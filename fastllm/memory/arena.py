"""Arena: one private huge-page region from which a model takes its memory.

Huge pages matter twice: a matrix read through 4 KiB pages misses the TLB (15-36 % of decode speed),
and a disk read into them is one segment for every 4 KiB instead of one for 2 MiB (up to 2.8 times
slower). The kernel gives them only to a mapping whose start and size are multiples of 2 MiB, so
everything is taken from a few large arenas instead of many small allocations.
"""

from __future__ import annotations

import weakref
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import BudgetError
from fastllm.memory.pages import PAGES, Pages


class Arena:
    """A region handed out front to back and freed as a whole.

    Addresses and views are dead after `close`; an arena that is only dropped lives on until the
    last view of it is gone.

    Parameters
    ----------
    nbytes : int
        Rounded up to 2 MiB. Reads as zeros.
    touch : bool
        Back the region with pages now, so that a lack of memory shows here and not while serving.
    pages : Pages, optional
        Who maps the memory; by default what `fastllm.memory.pages` chose.

    Attributes
    ----------
    nbytes : int
        As asked.
    used_bytes : int
        Handed out so far, padding included.

    Raises
    ------
    BudgetError
        The system refuses the mapping.
    """

    def __init__(self, nbytes: int, *, touch: bool = False, pages: Pages = PAGES) -> None:
        try:
            address = pages.huge_alloc(nbytes, touch)
        except MemoryError as error:
            raise BudgetError(
                f"cannot allocate {nbytes / 2**20:.0f} MiB of memory; free some, raise the limit "
                "(ulimit -v, container), or take a smaller model or context"
            ) from error
        self.nbytes = nbytes
        self.used_bytes = 0
        self._address = address
        self._free = weakref.finalize(self, pages.huge_free, address, nbytes)
        self._free.atexit = False  # threads may still read it while Python shuts down

    @property
    def closed(self) -> bool:
        """Whether the memory has been given back."""
        return not self._free.alive

    def alloc(self, nbytes: int, align: int = 64) -> int:
        """Take the next bytes.

        Parameters
        ----------
        nbytes : int
            May be 0.
        align : int
            A power of two up to 2 MiB.

        Returns
        -------
        int
            Address, a multiple of `align`.

        Raises
        ------
        BudgetError
            The arena is full.
        """
        if nbytes < 0 or align < 1 or align & (align - 1) or align > 2 << 20:
            raise ValueError(f"cannot allocate {nbytes} bytes aligned to {align}")
        self._check_open()
        start = -(-self.used_bytes // align) * align
        if start + nbytes > self.nbytes:
            raise BudgetError(
                f"{nbytes} bytes do not fit: {self.used_bytes} of the {self.nbytes} bytes "
                "planned for the model are in use"
            )
        self.used_bytes = start + nbytes
        return self._address + start

    def view(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Return bytes of the arena as an array.

        Parameters
        ----------
        address : int
            From `alloc`, or inside what it returned.
        nbytes : int
            How many.

        Returns
        -------
        uint8[nbytes]
            The memory itself, writable; keeps the arena alive, but not beyond `close`.
        """
        self._check_open()
        if nbytes < 0 or not 0 <= address - self._address <= self.nbytes - nbytes:
            raise ValueError(f"{nbytes} bytes at {address:#x} are not in this arena")
        return np.asarray(_Window(self, address, nbytes))

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        self._free()

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the arena is closed")


class _Window:
    """What NumPy asks for: an address, and someone who keeps it alive."""

    def __init__(self, owner: Arena, address: int, nbytes: int) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": (nbytes,),
            "typestr": "|u1",
        }
