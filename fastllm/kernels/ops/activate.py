"""The activation of an MLP, times the gated half, laid out for the product that follows."""

from __future__ import annotations

from enum import auto

from fastllm.kernels.jit import COMPILING, compiled
from fastllm.kernels.words import ACTIVATIONS, Words

if COMPILING:
    from fastllm.kernels.context import num_rows, num_threads, scratch_of, word
    from fastllm.kernels.functions import gelu16, gelu_tanh16, relu16, silu16
    from fastllm.kernels.memory import load16, mul16, store16
    from fastllm.kernels.quantize import quantize

_SILU, _GELU, _GELU_TANH = ACTIVATIONS["silu"], ACTIVATIONS["gelu"], ACTIVATIONS["gelu_tanh"]


class Activate(Words):
    """Words of the op."""

    ACTIVATION = auto()  # ACTIVATIONS
    GATE = auto()  # its rows are activated and multiplied with UP; 0: UP is activated
    UP = auto()
    STRIDE = auto()  # of both
    COLUMNS = auto()
    TILES = auto()
    TILES_KIND = auto()
    TOKEN_BYTES = auto()


@compiled
def run(c: int, op: int, tid: int) -> int:
    """Blocks of 256 columns, so that threads share one token, too."""
    threads, scratch = num_threads(c), scratch_of(c, tid)
    activation, gate, up = (
        word(op, Activate.ACTIVATION),
        word(op, Activate.GATE),
        word(op, Activate.UP),
    )
    stride, columns = word(op, Activate.STRIDE), word(op, Activate.COLUMNS)
    tiles, kind = word(op, Activate.TILES), word(op, Activate.TILES_KIND)
    token_bytes, rows = word(op, Activate.TOKEN_BYTES), num_rows(c, op)
    blocks = (columns + 255) // 256
    for item in range(rows * blocks * tid // threads, rows * blocks * (tid + 1) // threads):
        t, first = item // blocks, item % blocks * 256
        at = t * stride + 4 * first
        count = min(256, columns - first)
        for i in range(16):
            x = load16((gate if gate != 0 else up) + at + 64 * i)
            if activation == _SILU:
                y = silu16(x)
            elif activation == _GELU:
                y = gelu16(x)
            elif activation == _GELU_TANH:
                y = gelu_tanh16(x)
            else:
                y = relu16(x)
            if gate != 0:
                y = mul16(y, load16(up + at + 64 * i))
            store16(scratch + 64 * i, y)
        last = 1 if first + count == columns else 0
        quantize(kind, scratch, first, count, last, tiles, token_bytes, rows, t)
    return 0
