"""Intrinsics for single values and 16-float vectors at an address: the words of the step's code."""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import models, register_model

from fastllm.kernels.emit import Emitter, Value, f32, i16, i32, i64, kernel, v16f32
from fastllm.kernels.road import Road


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


def _bits_to_float(e: Emitter, bits: Value) -> Value:
    return e.b.bitcast(e.b.trunc(bits, i32), f32)


class Memory(NamedTuple):
    """The intrinsics, made for one road. a: address, v: value, n: valid lanes (1..16)."""

    load_i64: Any
    store_i64: Any
    load_i32: Any
    store_i32: Any
    load_f32: Any
    store_f32: Any
    float_of_bits: Any
    load: Any
    store: Any
    splat: Any
    zero: Any
    add: Any
    sub: Any
    mul: Any
    div: Any
    fma: Any
    hsum: Any
    keep: Any
    load_half: Any
    store_half: Any
    store_half_strided: Any
    store_strided: Any


def memory(road: Road) -> Memory:
    """Build the intrinsics for `road`."""

    def make(ret: Any, *args: Any) -> Any:
        return lambda generate: kernel(road, len(args), generate, ret, args)

    def keep(e: Emitter, v: Value, n: Value) -> Value:
        """Lanes below n, zero elsewhere."""
        lanes = ir.Constant(ir.VectorType(i32, 16), list(range(16)))
        limit = e.splat(e.b.trunc(n, i32), lanes.type)
        return e.b.select(e.b.icmp_signed("<", lanes, limit), v, e.splat(0.0, v16f32))

    def to_half(e: Emitter, v: Value) -> Value:
        """Half precision, saturated: infinity would spoil other tokens (0 * inf is NaN)."""
        largest, least = e.splat(65504.0, v16f32), e.splat(-65504.0, v16f32)
        v = e.b.select(e.b.fcmp_ordered(">", v, largest), largest, v)
        return e.float_to_half(e.b.select(e.b.fcmp_ordered("<", v, least), least, v))

    def store_half_strided(e: Emitter, a: Value, stride: Value, v: Value) -> None:
        half = to_half(e, v)
        for lane in range(16):
            one = e.b.extract_element(half, ir.Constant(i32, lane))
            e.store(one, e.add(a, e.mul(stride, lane)), 0, 2)

    def store_strided(e: Emitter, a: Value, stride: Value, v: Value) -> None:
        for lane in range(16):
            one = e.b.extract_element(v, ir.Constant(i32, lane))
            e.store(one, e.add(a, e.mul(stride, lane)))

    v16i16 = ir.VectorType(i16, 16)
    return Memory(
        load_i64=make(I, I)(lambda e, a: e.load(a, i64, 0, 8)),
        store_i64=make(N, I, I)(lambda e, a, v: e.store(v, a, 0, 8)),
        load_i32=make(I, I)(lambda e, a: e.b.sext(e.load(a, i32), i64)),
        store_i32=make(N, I, I)(lambda e, a, v: e.store(e.b.trunc(v, i32), a)),
        load_f32=make(F, I)(lambda e, a: e.load(a, f32)),
        store_f32=make(N, I, F)(lambda e, a, v: e.store(v, a)),
        float_of_bits=make(F, I)(_bits_to_float),
        load=make(V, I)(lambda e, a: e.load(a, v16f32)),
        store=make(N, I, V)(lambda e, a, v: e.store(v, a)),
        splat=make(V, F)(lambda e, x: e.splat(x, v16f32)),
        zero=make(V)(lambda e: e.splat(0.0, v16f32)),
        add=make(V, V, V)(lambda e, a, c: e.b.fadd(a, c)),
        sub=make(V, V, V)(lambda e, a, c: e.b.fsub(a, c)),
        mul=make(V, V, V)(lambda e, a, c: e.b.fmul(a, c)),
        div=make(V, V, V)(lambda e, a, c: e.b.fdiv(a, c)),
        fma=make(V, V, V, V)(lambda e, a, c, d: e.fma(a, c, d)),
        hsum=make(F, V)(lambda e, v: e.hsum(v)),
        keep=make(V, V, I)(keep),
        load_half=make(V, I)(lambda e, a: e.half_to_float(e.load(a, v16i16, 0, 2))),
        store_half=make(N, I, V)(lambda e, a, v: e.store(to_half(e, v), a, 0, 2)),
        store_half_strided=make(N, I, I, V)(store_half_strided),
        store_strided=make(N, I, I, V)(store_strided),
    )
