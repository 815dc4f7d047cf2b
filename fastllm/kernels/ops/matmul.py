"""Products of rows and a matrix; one function a weight format (``mm_q4_1``, ...)."""

from __future__ import annotations

from collections.abc import Callable
from enum import auto
from typing import Any

from fastllm.kernels.jit import COMPILING, compiled
from fastllm.kernels.words import Context, Words

if COMPILING:
    from fastllm.kernels.context import num_rows, num_threads, scratch_of, word
    from fastllm.kernels.matmul import matmul


class Matmul(Words):
    """Words of the op."""

    SPANS = auto()  # int64[NUM_SPANS][3]: first panel, panels, address
    NUM_SPANS = auto()
    NUM_PANELS = auto()
    PANEL_BYTES = auto()
    UNITS = auto()  # of columns, in a panel
    TILES = auto()  # activations
    TOKEN_BYTES = auto()
    OUT = auto()
    OUT_STRIDE = auto()
    BIAS = auto()  # 0: none
    ADD = auto()  # 1: add to OUT


def run_of(name: str) -> Callable[..., Any]:
    """Return the `run` of weight format `name`."""
    multiply = compiled(matmul(name))

    def run(c: int, op: int, tid: int) -> int:
        """A share of the panels, wherever they lie."""
        threads, panels = num_threads(c), word(op, Matmul.NUM_PANELS)
        begin, end = panels * tid // threads, panels * (tid + 1) // threads
        panel_bytes, units = word(op, Matmul.PANEL_BYTES), word(op, Matmul.UNITS)
        tiles, token_bytes = word(op, Matmul.TILES), word(op, Matmul.TOKEN_BYTES)
        out, out_stride = word(op, Matmul.OUT), word(op, Matmul.OUT_STRIDE)
        bias, add, prefetch = word(op, Matmul.BIAS), word(op, Matmul.ADD), word(c, Context.PREFETCH)
        scratch = scratch_of(c, tid) + word(c, Context.MATMUL_SCRATCH)
        spans = word(op, Matmul.SPANS)
        for i in range(word(op, Matmul.NUM_SPANS)):
            span = spans + 24 * i
            start, count, place = word(span, 0), word(span, 1), word(span, 2)
            first, last = max(begin, start), min(end, start + count)
            if first < last:
                multiply(
                    place - start * panel_bytes, panel_bytes, units, tiles, token_bytes,
                    num_rows(c, op), out, out_stride, first, last, bias, add, prefetch, scratch,
                )  # fmt: skip
        return 0

    return run
