"""Native rows to panels: the packing kernel that reads the tables of ``kernels.layouts``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastllm.kernels.emit import i16, i32, i64, kernel
from fastllm.kernels.jit import compiled
from fastllm.kernels.layouts import FLIP_SIGNS, ROWS, SPREAD_BITS
from fastllm.kernels.memory import I, N, memory
from fastllm.kernels.road import Road


def pack(road: Road) -> Callable[..., Any]:
    """Return the Python function that packs panels, ready to be compiled.

    Arguments, int64: moves (address of `kernels.moves.move_table`), source (native rows),
    row_bytes, num_rows, block_bytes, units, destination, first and last panel. Rows past num_rows
    and bytes past the end of a row are zero in the panel. Source and destination both point at
    panel 0 of the chunk.
    """
    m = memory(road)
    load_i64, store_i32 = m.load_i64, m.store_i32
    # native rows have no alignment
    load_i32 = kernel(road, 1, lambda e, a: e.b.sext(e.load(a, i32, 0, 1), i64), I, (I,))
    load_i16 = kernel(road, 1, lambda e, a: e.b.sext(e.load(a, i16, 0, 1), i64), I, (I,))
    store_i16 = kernel(road, 2, lambda e, a, v: e.store(e.b.trunc(v, i16), a, 0, 2), N, (I, I))

    @compiled
    def spread(bits: int) -> int:
        out = 0
        for i in range(32):
            piece = (i % 16) // 4 + 4 * (i // 16)
            out |= ((bits >> i) & 1) << (piece + 8 * (i % 4))
        return out

    def packed(
        moves: int,
        source: int,
        row_bytes: int,
        num_rows: int,
        block_bytes: int,
        units: int,
        destination: int,
        first: int,
        last: int,
    ) -> int:
        halves, dwords = load_i64(moves), load_i64(moves + 8)
        half_at, dword_at = moves + 16, moves + 16 + 8 * halves
        unit_bytes = 32 * halves + 64 * dwords
        for p in range(first, last):
            panel = destination + p * units * unit_bytes
            for u in range(units):
                out = panel + u * unit_bytes
                whole = (u + 1) * block_bytes <= row_bytes
                for h in range(halves):
                    offset = load_i64(half_at + 8 * h)
                    for r in range(ROWS):
                        v = 0
                        row = p * ROWS + r
                        if offset >= 0 and row < num_rows:
                            at = u * block_bytes + offset
                            if whole or at + 2 <= row_bytes:
                                v = load_i16(source + row * row_bytes + at)
                        store_i16(out + 2 * r, v)
                    out += 32
                for d in range(dwords):
                    offset = load_i64(dword_at + 16 * d)
                    move = load_i64(dword_at + 16 * d + 8)
                    at = u * block_bytes + offset
                    rows = min(ROWS, num_rows - p * ROWS)
                    if not whole and at + 4 > row_bytes:
                        rows = 0  # native rows are whole dwords in every format that has dwords
                    base = source + p * ROWS * row_bytes + at
                    for r in range(rows):
                        v = load_i32(base + r * row_bytes)
                        if move == FLIP_SIGNS:
                            v ^= 0x80808080
                        elif move == SPREAD_BITS:
                            v = spread(v)
                        store_i32(out + 4 * r, v)
                    for r in range(rows, ROWS):
                        store_i32(out + 4 * r, 0x80808080 if move == FLIP_SIGNS else 0)
                    out += 64
        return 0

    return packed
