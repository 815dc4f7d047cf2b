"""Intrinsics for single values and 16-float vectors at an address: the words of compiled code.

A name that ends in 16 works on 16 float32 lanes. a: address, v: value, n: valid lanes (1..16).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import models, register_model

from fastllm.kernels.emit import Emitter, Value, f32, i16, i32, i64, kernel, v16f32, v16i16


class Vector16(types.Type):
    """Numba type of 16 float32 lanes: an ordinary variable that LLVM keeps in a register."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


@register_model(Vector16)
class _Vector16Model(models.PrimitiveModel):
    def __init__(self, manager: Any, front_end: Any) -> None:
        super().__init__(manager, front_end, v16f32)  # type: ignore[no-untyped-call]


_make: Any = Vector16  # numba's metaclass hides the constructor's type
vector16 = _make()
I, F, V, N = types.int64, types.float32, vector16, types.void  # noqa: E741


# --------------------------------------------------------------------------- single values
@kernel(I, I)
def load_i64(e: Emitter, a: Value) -> Value:
    return e.load(a, i64, 0, 8)


@kernel(N, I, I)
def store_i64(e: Emitter, a: Value, v: Value) -> None:
    e.store(v, a, 0, 8)


@kernel(I, I)
def load_i32(e: Emitter, a: Value) -> Value:
    return e.b.sext(e.load(a, i32), i64)


@kernel(F, I)
def load_f32(e: Emitter, a: Value) -> Value:
    return e.load(a, f32)


@kernel(N, I, F)
def store_f32(e: Emitter, a: Value, v: Value) -> None:
    e.store(v, a)


@kernel(F, I)
def float_of_bits(e: Emitter, bits: Value) -> Value:
    """The float32 whose bits are the low half of a word."""
    return e.b.bitcast(e.b.trunc(bits, i32), f32)


@kernel(I, I)
def load_i32_unaligned(e: Emitter, a: Value) -> Value:
    return e.b.sext(e.load(a, i32, 0, 1), i64)


@kernel(I, I)
def load_i16_unaligned(e: Emitter, a: Value) -> Value:
    return e.b.sext(e.load(a, i16, 0, 1), i64)


@kernel(N, I, I)
def store_i32(e: Emitter, a: Value, v: Value) -> None:
    e.store(e.b.trunc(v, i32), a)


@kernel(N, I, I)
def store_i16(e: Emitter, a: Value, v: Value) -> None:
    e.store(e.b.trunc(v, i16), a, 0, 2)


# --------------------------------------------------------------------------- 16 lanes
@kernel(V, I)
def load16(e: Emitter, a: Value) -> Value:
    return e.load(a, v16f32)


@kernel(N, I, V)
def store16(e: Emitter, a: Value, v: Value) -> None:
    e.store(v, a)


@kernel(V, F)
def splat16(e: Emitter, x: Value) -> Value:
    return e.splat(x, v16f32)


@kernel(V)
def zero16(e: Emitter) -> Value:
    return e.splat(0.0, v16f32)


@kernel(V, V, V)
def add16(e: Emitter, a: Value, b: Value) -> Value:
    return e.b.fadd(a, b)


@kernel(V, V, V)
def sub16(e: Emitter, a: Value, b: Value) -> Value:
    return e.b.fsub(a, b)


@kernel(V, V, V)
def mul16(e: Emitter, a: Value, b: Value) -> Value:
    return e.b.fmul(a, b)


@kernel(V, V, V, V)
def fma16(e: Emitter, a: Value, b: Value, c: Value) -> Value:
    return e.fma(a, b, c)


@kernel(F, V)
def sum16(e: Emitter, v: Value) -> Value:
    return e.hsum(v)


@kernel(V, V, I)
def keep16(e: Emitter, v: Value, n: Value) -> Value:
    """Lanes below n, zero elsewhere."""
    lanes = ir.Constant(ir.VectorType(i32, 16), list(range(16)))
    limit = e.splat(e.b.trunc(n, i32), lanes.type)
    return e.b.select(e.b.icmp_signed("<", lanes, limit), v, e.splat(0.0, v16f32))


# --------------------------------------------------------------------------- half precision
def _to_half(e: Emitter, v: Value) -> Value:
    """Half precision, saturated: infinity would spoil other tokens (0 * inf is NaN)."""
    largest, least = e.splat(65504.0, v16f32), e.splat(-65504.0, v16f32)
    v = e.b.select(e.b.fcmp_ordered(">", v, largest), largest, v)
    return e.float_to_half(e.b.select(e.b.fcmp_ordered("<", v, least), least, v))


@kernel(I, V)
def beyond_half(e: Emitter, v: Value) -> Value:
    """Not 0 if a lane is a number that half precision cannot hold; NaN can be held."""
    over = e.b.fcmp_ordered(">", e.call("llvm.fabs.v16f32", v16f32, v), e.splat(65504.0, v16f32))
    return e.b.zext(e.b.bitcast(over, i16), i64)


@kernel(V, I)
def load16_half(e: Emitter, a: Value) -> Value:
    return e.half_to_float(e.load(a, v16i16, 0, 2))


@kernel(N, I, V)
def store16_half(e: Emitter, a: Value, v: Value) -> None:
    e.store(_to_half(e, v), a, 0, 2)


@kernel(N, I, I, V)
def store16_half_strided(e: Emitter, a: Value, stride: Value, v: Value) -> None:
    """Lane i to a + i * stride."""
    half = _to_half(e, v)
    for lane in range(16):
        one = e.b.extract_element(half, ir.Constant(i32, lane))
        e.store(one, e.add(a, e.mul(stride, lane)), 0, 2)


@kernel(N, I, I, V)
def store16_strided(e: Emitter, a: Value, stride: Value, v: Value) -> None:
    """Lane i to a + i * stride."""
    for lane in range(16):
        one = e.b.extract_element(v, ir.Constant(i32, lane))
        e.store(one, e.add(a, e.mul(stride, lane)))
