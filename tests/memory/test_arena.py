"""Arena: aligned, bounded, freed when it says so."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import BudgetError
from fastllm.memory.arena import Arena

MIB = 1 << 20


def resident_kib() -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+)", text)[1])


def test_alloc_is_aligned_and_zero(implementation) -> None:
    with Arena(3 * MIB, pages=implementation) as arena:
        first = arena.alloc(1)
        second = arena.alloc(100, align=4096)
        assert first % (2 * MIB) == 0
        assert second == first + 4096
        assert arena.used_bytes == 4196
        assert not arena.view(first, 3 * MIB).any()


def test_view_is_the_memory(implementation) -> None:
    with Arena(MIB, pages=implementation) as arena:
        address = arena.alloc(64)
        view = arena.view(address, 64)
        assert view.ctypes.data == address
        view[:] = np.arange(64)
        assert arena.view(address + 10, 5).tolist() == [10, 11, 12, 13, 14]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_touch_backs_all_of_it(implementation) -> None:
    before = resident_kib()
    with Arena(16 * MIB, touch=True, pages=implementation):
        assert resident_kib() - before >= 15 << 10
    assert resident_kib() - before < 4 << 10, "close gives the memory back"


def test_dropped_arena_lives_as_long_as_its_views(implementation) -> None:
    arena = Arena(MIB, pages=implementation)
    free = arena._free
    view = arena.view(arena.alloc(8), 8)
    view[:] = 7
    del arena
    gc.collect()
    assert free.alive
    assert view.tolist() == [7] * 8
    del view
    gc.collect()
    assert not free.alive


def test_close_twice_and_use_after(implementation) -> None:
    arena = Arena(MIB, pages=implementation)
    address = arena.alloc(8)
    arena.close()
    arena.close()
    assert arena.closed
    with pytest.raises(ValueError, match="closed"):
        arena.alloc(8)
    with pytest.raises(ValueError, match="closed"):
        arena.view(address, 8)


def test_full(implementation) -> None:
    with Arena(MIB, pages=implementation) as arena:
        arena.alloc(MIB - 10)
        with pytest.raises(BudgetError, match=r"11 bytes do not fit: 1048566 of the 1048576"):
            arena.alloc(11, align=1)
        arena.alloc(10, align=1)
        arena.alloc(0, align=1)


@pytest.mark.parametrize("nbytes", [1 << 60, 1 << 62, (1 << 63) - 1])
def test_impossible_size(implementation, nbytes: int) -> None:
    with pytest.raises(BudgetError, match="cannot allocate"):
        Arena(nbytes, pages=implementation)


def test_refuses_nonsense(implementation) -> None:
    with pytest.raises(ValueError, match="negative"):
        Arena(-1, pages=implementation)
    with Arena(0, pages=implementation) as arena:
        for nbytes, align in ((-1, 64), (1, 3), (1, 0), (1, 4 * MIB)):
            with pytest.raises(ValueError, match="cannot allocate"):
                arena.alloc(nbytes, align)
        base = arena.alloc(0)
        assert arena.view(base, 0).size == 0
        for address, nbytes in ((base - 1, 1), (base, 1), (base, -1)):
            with pytest.raises(ValueError, match="not in this arena"):
                arena.view(address, nbytes)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 12)), max_size=30))
def test_pieces_do_not_overlap(pieces: list[tuple[int, int]]) -> None:
    with Arena(MIB) as arena:
        end = arena.alloc(0)
        for nbytes, power in pieces:
            address = arena.alloc(nbytes, 1 << power)
            assert address % (1 << power) == 0
            assert end <= address < end + (1 << power)
            end = address + nbytes
        assert arena.used_bytes <= MIB
