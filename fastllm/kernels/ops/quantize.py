"""Lay rows out for products of a further kind."""

from __future__ import annotations

from enum import auto

from fastllm.kernels.jit import COMPILING, compiled
from fastllm.kernels.words import Words

if COMPILING:
    from fastllm.kernels.context import num_rows, num_threads, word
    from fastllm.kernels.quantize import quantize


class Quantize(Words):
    """Words of the op."""

    SOURCE = auto()
    SOURCE_STRIDE = auto()
    COLUMNS = auto()
    TILES = auto()
    TILES_KIND = auto()
    TOKEN_BYTES = auto()


@compiled
def run(c: int, op: int, tid: int) -> int:
    """A row at a time."""
    count, tiles = num_rows(c, op), word(op, Quantize.TILES)
    for t in range(tid, count, num_threads(c)):
        row = word(op, Quantize.SOURCE) + t * word(op, Quantize.SOURCE_STRIDE)
        quantize(
            word(op, Quantize.TILES_KIND), row, 0, word(op, Quantize.COLUMNS), 1, tiles,
            word(op, Quantize.TOKEN_BYTES), count, t,
        )  # fmt: skip
    return 0
