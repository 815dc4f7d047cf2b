"""Rotation of one head, with the padding after it."""

from __future__ import annotations

from fastllm.kernels.emit import Emitter, Value, kernel
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import V, fma16, load16, load_f32, mul16, splat16, store16, store_f32
from fastllm.kernels.words import ROPE_STYLES

_HALF, _PAIRS = ROPE_STYLES["half"], ROPE_STYLES["pairs"]


@kernel(V, V)
def swap16(e: Emitter, v: Value) -> Value:
    """Exchange lanes 0 and 1, 2 and 3, and so on."""
    return e.shuf(v, None, [i ^ 1 for i in range(16)])


@compiled
def rotate(
    style: int, x: int, head_dim: int, rotary_dim: int, table: int, scale: float, out: int
) -> None:
    """Rotate one head.

    ``out[i] = (x[i] * cos[i] + x[partner(i)] * sin[i]) * scale`` for the first rotary_dim values,
    ``x[i] * scale`` for the rest, then zeros up to a multiple of 16. Partner: i +- rotary_dim / 2
    (half) or i ^ 1 (pairs). `table` holds cos[rotary_dim] and sin[rotary_dim] of one position, each
    already spread over both partners, the sine with its sign.
    """
    sines = table + 4 * rotary_dim
    half = rotary_dim // 2
    factor = splat16(scale)
    done = 0
    if style == _HALF and half % 16 == 0:
        for i in range(half // 16):
            a, b = load16(x + 64 * i), load16(x + 4 * half + 64 * i)
            first = fma16(b, load16(sines + 64 * i), mul16(a, load16(table + 64 * i)))
            c, s = load16(table + 4 * half + 64 * i), load16(sines + 4 * half + 64 * i)
            second = fma16(a, s, mul16(b, c))
            store16(out + 64 * i, mul16(first, factor))
            store16(out + 4 * half + 64 * i, mul16(second, factor))
        done = rotary_dim
    elif style == _PAIRS and rotary_dim % 16 == 0:
        for i in range(rotary_dim // 16):
            a = load16(x + 64 * i)
            turned = fma16(swap16(a), load16(sines + 64 * i), mul16(a, load16(table + 64 * i)))
            store16(out + 64 * i, mul16(turned, factor))
        done = rotary_dim
    elif style != 0:
        for i in range(rotary_dim):
            partner = i ^ 1
            if style == _HALF:
                partner = i + half if i < half else i - half
            cosine, sine = load_f32(table + 4 * i), load_f32(sines + 4 * i)
            turned = load_f32(x + 4 * i) * cosine + load_f32(x + 4 * partner) * sine
            store_f32(out + 4 * i, turned * scale)
        done = rotary_dim
    for i in range(done, head_dim):
        store_f32(out + 4 * i, load_f32(x + 4 * i) * scale)
    for i in range(head_dim, (head_dim + 15) // 16 * 16):
        store_f32(out + 4 * i, 0.0)
