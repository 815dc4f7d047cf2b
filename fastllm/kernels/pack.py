"""Native rows to panels: the packing kernel that reads the tables of ``kernels.layouts``."""

from __future__ import annotations

from fastllm.kernels.context import word
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import (
    load_i16_unaligned,
    load_i32_unaligned,
    load_i64,
    store_i16,
    store_i32,
)
from fastllm.kernels.panels import FLIP_SIGNS, ROWS, SPREAD_BITS
from fastllm.kernels.words import Packing


@compiled
def _spread(bits: int) -> int:
    out = 0
    for i in range(32):
        piece = (i % 16) // 4 + 4 * (i // 16)
        out |= ((bits >> i) & 1) << (piece + 8 * (i % 4))
    return out


def pack(job: int, source: int) -> int:
    """Pack panels; the function of the unit "pack".

    Arguments: address of the job (`Packing`'s words), address of the native rows, at any alignment.
    Rows past NUM_ROWS and bytes past the end of a row are zero in the panel. Source and destination
    both begin with the rows of panel 0.
    """
    moves, row_bytes = word(job, Packing.MOVES), word(job, Packing.ROW_BYTES)
    num_rows, block_bytes = word(job, Packing.NUM_ROWS), word(job, Packing.BLOCK_BYTES)
    units, destination = word(job, Packing.UNITS), word(job, Packing.DESTINATION)
    first, last = word(job, Packing.FIRST), word(job, Packing.LAST)
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
                            v = load_i16_unaligned(source + row * row_bytes + at)
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
                    v = load_i32_unaligned(base + r * row_bytes)
                    if move == FLIP_SIGNS:
                        v ^= 0x80808080
                    elif move == SPREAD_BITS:
                        v = _spread(v)
                    store_i32(out + 4 * r, v)
                for r in range(rows, ROWS):
                    store_i32(out + 4 * r, 0x80808080 if move == FLIP_SIGNS else 0)
                out += 64
    return 0
