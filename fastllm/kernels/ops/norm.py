"""Norm rows; add them to others, or lay them out for products, or both."""

from __future__ import annotations

from enum import auto

from fastllm.kernels.jit import COMPILING, compiled
from fastllm.kernels.words import Context, Words

if COMPILING:
    from fastllm.kernels.context import num_rows, num_threads, scratch_of, word
    from fastllm.kernels.memory import add16, float_of_bits, load16, load_i32, store16
    from fastllm.kernels.norm import normalize
    from fastllm.kernels.quantize import quantize


class Norm(Words):
    """Words of the op."""

    KIND = auto()  # NORMS, or -1: rows as they are
    SOURCE = auto()
    SOURCE_STRIDE = auto()
    GATHER = auto()  # 1: row i of the span is the source's row LOGIT_ROWS[i]
    COLUMNS = auto()
    WEIGHT = auto()
    BIAS = auto()  # 0: none
    EPS = auto()
    OUT = auto()  # float32 rows, 0: none
    OUT_STRIDE = auto()
    ADD = auto()  # 1: add to OUT
    TILES = auto()  # activations for products, 0: none
    TILES_KIND = auto()
    TOKEN_BYTES = auto()


@compiled
def run(c: int, op: int, tid: int) -> int:
    """A row at a time."""
    threads, scratch = num_threads(c), scratch_of(c, tid)
    kind, source, stride = word(op, Norm.KIND), word(op, Norm.SOURCE), word(op, Norm.SOURCE_STRIDE)
    columns, weight, bias = word(op, Norm.COLUMNS), word(op, Norm.WEIGHT), word(op, Norm.BIAS)
    eps = float_of_bits(word(op, Norm.EPS))
    out, out_stride, accumulate = word(op, Norm.OUT), word(op, Norm.OUT_STRIDE), word(op, Norm.ADD)
    tiles, tiles_kind = word(op, Norm.TILES), word(op, Norm.TILES_KIND)
    token_bytes, gather = word(op, Norm.TOKEN_BYTES), word(op, Norm.GATHER)
    count, asked = num_rows(c, op), word(c, Context.LOGIT_ROWS)
    for t in range(tid, count, threads):
        row = load_i32(asked + 4 * t) if gather != 0 else t
        x = source + row * stride
        if kind >= 0:
            normalize(kind, x, weight, bias, columns, eps, scratch)
            x = scratch
        if out != 0:
            y = out + t * out_stride
            for i in range((columns + 15) // 16):
                v = load16(x + 64 * i)
                if accumulate != 0:
                    v = add16(load16(y + 64 * i), v)
                store16(y + 64 * i, v)
            x = y
        if tiles != 0:
            quantize(tiles_kind, x, 0, columns, 1, tiles, token_bytes, count, t)
    return 0
