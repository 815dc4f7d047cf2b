"""Add rows to rows."""

from __future__ import annotations

from enum import auto

from fastllm.kernels.jit import COMPILING, compiled
from fastllm.kernels.words import Words

if COMPILING:
    from fastllm.kernels.context import num_rows, num_threads, word
    from fastllm.kernels.memory import add16, load16, store16


class Add(Words):
    """Words of the op."""

    OUT = auto()
    OUT_STRIDE = auto()
    SOURCE = auto()
    SOURCE_STRIDE = auto()
    COLUMNS = auto()


@compiled
def run(c: int, op: int, tid: int) -> int:
    """A row at a time."""
    vectors = (word(op, Add.COLUMNS) + 15) // 16
    for t in range(tid, num_rows(c, op), num_threads(c)):
        a = word(op, Add.OUT) + t * word(op, Add.OUT_STRIDE)
        b = word(op, Add.SOURCE) + t * word(op, Add.SOURCE_STRIDE)
        for i in range(vectors):
            store16(a + 64 * i, add16(load16(a + 64 * i), load16(b + 64 * i)))
    return 0
