"""Cap logits: cap * tanh(x / cap), in place."""

from __future__ import annotations

from enum import auto

from fastllm.kernels.jit import COMPILING, compiled
from fastllm.kernels.words import Words

if COMPILING:
    from fastllm.kernels.context import num_rows, num_threads, word
    from fastllm.kernels.functions import tanh16
    from fastllm.kernels.memory import float_of_bits, load16, mul16, splat16, store16


class Softcap(Words):
    """Words of the op."""

    ROWS = auto()
    STRIDE = auto()
    COLUMNS = auto()
    CAP = auto()


@compiled
def run(c: int, op: int, tid: int) -> int:
    """Vectors of all rows, shared out evenly."""
    threads, cap = num_threads(c), float_of_bits(word(op, Softcap.CAP))
    wide, inverse = splat16(cap), splat16(float_of_bits(0x3F800000) / cap)
    vectors, rows = (word(op, Softcap.COLUMNS) + 15) // 16, num_rows(c, op)
    for item in range(rows * vectors * tid // threads, rows * vectors * (tid + 1) // threads):
        row = word(op, Softcap.ROWS) + item // vectors * word(op, Softcap.STRIDE)
        at = row + item % vectors * 64
        store16(at, mul16(wide, tanh16(mul16(load16(at), inverse))))
    return 0
