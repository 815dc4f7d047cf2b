"""Rotation of one head, with the optional norm before it and the padding after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastllm.kernels.emit import Emitter, Value, kernel
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import V, memory
from fastllm.kernels.road import Road
from fastllm.kernels.words import ROPE_STYLES


def rotation(road: Road) -> Callable[..., Any]:
    """Compiled function (style, x, head_dim, rotary_dim, table, scale, out).

    ``out[i] = (x[i] * cos[i] + x[partner(i)] * sin[i]) * scale`` for the first rotary_dim values,
    ``x[i] * scale`` for the rest, then zeros up to a multiple of 16. Partner: i +- rotary_dim / 2
    (half) or i ^ 1 (pairs). `table` holds cos[rotary_dim] and sin[rotary_dim] of one position, each
    already spread over both partners, the sine with its sign.
    """
    m = memory(road)
    load, store, mul, fma, splat = m.load, m.store, m.mul, m.fma, m.splat
    load_f32, store_f32 = m.load_f32, m.store_f32
    half_style, pairs_style = ROPE_STYLES["half"], ROPE_STYLES["pairs"]

    def swap(e: Emitter, v: Value) -> Value:
        return e.shuf(v, None, [i ^ 1 for i in range(16)])

    swapped = kernel(road, 1, swap, V, (V,))

    @compiled
    def rotate(
        style: int, x: int, head_dim: int, rotary_dim: int, table: int, scale: float, out: int
    ) -> None:
        sines = table + 4 * rotary_dim
        half = rotary_dim // 2
        factor = splat(scale)
        done = 0
        if style == half_style and half % 16 == 0:
            for i in range(half // 16):
                a, b = load(x + 64 * i), load(x + 4 * half + 64 * i)
                first = fma(b, load(sines + 64 * i), mul(a, load(table + 64 * i)))
                c, s = load(table + 4 * half + 64 * i), load(sines + 4 * half + 64 * i)
                second = fma(a, s, mul(b, c))
                store(out + 64 * i, mul(first, factor))
                store(out + 4 * half + 64 * i, mul(second, factor))
            done = rotary_dim
        elif style == pairs_style and rotary_dim % 16 == 0:
            for i in range(rotary_dim // 16):
                a = load(x + 64 * i)
                turned = fma(swapped(a), load(sines + 64 * i), mul(a, load(table + 64 * i)))
                store(out + 64 * i, mul(turned, factor))
            done = rotary_dim
        elif style != 0:
            for i in range(rotary_dim):
                partner = i ^ 1
                if style == half_style:
                    partner = i + half if i < half else i - half
                cosine, sine = load_f32(table + 4 * i), load_f32(sines + 4 * i)
                turned = load_f32(x + 4 * i) * cosine + load_f32(x + 4 * partner) * sine
                store_f32(out + 4 * i, turned * scale)
            done = rotary_dim
        for i in range(done, head_dim):
            store_f32(out + 4 * i, load_f32(x + 4 * i) * scale)
        for i in range(head_dim, (head_dim + 15) // 16 * 16):
            store_f32(out + 4 * i, 0.0)

    return rotate
