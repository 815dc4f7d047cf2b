"""Sixteen logits at a time, for ``kernels.pick``: comparisons to bit masks, buckets, weights."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from fastllm.kernels.emit import Emitter, Value, i32, i64, kernel, v16f32, v16i32
from fastllm.kernels.functions import exp
from fastllm.kernels.memory import F, I, N, V
from fastllm.kernels.pick_sizes import BUCKETS, PER_NAT

_D = types.float64
# A weight this many nats below the largest is 0: below a double's last bit, and -inf means never.
_NOTHING = -80.0


def _worse(e: Emitter, best: Value, x: Value) -> Value:
    """Lane-wise maximum that keeps a NaN of either side."""
    larger = e.b.select(e.b.fcmp_ordered(">", x, best), x, best)
    # a sum with a NaN is NaN; a scalar and a vector alike
    return e.b.select(e.b.fcmp_unordered("uno", x, best), e.b.fadd(x, best), larger)


worse16 = kernel(V, V, V)(_worse)


@kernel(F, V)
def maximum16(e: Emitter, v: Value) -> Value:
    """The largest lane, or NaN if there is one."""
    return e.tree(v, lambda a, c: _worse(e, a, c))


@kernel(I, V, F)
def above16(e: Emitter, x: Value, bound: Value) -> Value:
    """Bit i: lane i is above `bound`."""
    above = e.b.fcmp_ordered(">", x, e.splat(bound, v16f32))
    return e.b.zext(e.b.bitcast(above, ir.IntType(16)), i64)


@kernel(I, V, F)
def equal16(e: Emitter, x: Value, bound: Value) -> Value:
    """Bit i: lane i equals `bound`."""
    same = e.b.fcmp_ordered("==", x, e.splat(bound, v16f32))
    return e.b.zext(e.b.bitcast(same, ir.IntType(16)), i64)


@kernel(N, V, F, I)
def falls16(e: Emitter, x: Value, largest: Value, out: Value) -> None:
    """Buckets int32[16] at `out`, masses float32[16] behind them."""
    e.store(_bucket(e, x, largest), out)
    e.store(_exp_or_zero(e, e.b.fsub(x, e.splat(largest, v16f32))), out, 64)


def _bucket(e: Emitter, x: Value, largest: Value) -> Value:
    b = e.b
    down = b.fmul(b.fsub(e.splat(largest, v16f32), x), e.splat(float(PER_NAT), v16f32))
    last = e.splat(float(BUCKETS - 1), v16f32)
    return b.fptosi(b.select(b.fcmp_ordered("<", down, last), down, last), v16i32)


def _exp_or_zero(e: Emitter, shifted: Value) -> Value:
    seen = e.b.fcmp_ordered(">", shifted, e.splat(_NOTHING, v16f32))
    return e.b.select(seen, exp(e, shifted), e.splat(0.0, v16f32))


@kernel(V, V, I, F, F, F, I)
def weights16(
    e: Emitter, x: Value, first: Value, largest: Value, inverse: Value, cut: Value, last_id: Value
) -> Value:
    """Tempered weights of 16 tokens from id `first` on; 0 for what lies behind the cut."""
    b = e.b
    lanes = ir.Constant(v16i32, list(range(16)))
    ids = b.add(lanes, e.splat(b.trunc(first, i32), v16i32))
    edge = e.splat(cut, v16f32)
    level = b.and_(
        b.fcmp_ordered("==", x, edge),
        b.icmp_signed("<=", ids, e.splat(b.trunc(last_id, i32), v16i32)),
    )
    kept = b.or_(b.fcmp_ordered(">", x, edge), level)
    shifted = b.fmul(b.fsub(x, e.splat(largest, v16f32)), e.splat(inverse, v16f32))
    return b.select(kept, _exp_or_zero(e, shifted), e.splat(0.0, v16f32))


@kernel(I, V, F, I)
def members16(e: Emitter, x: Value, largest: Value, bucket: Value) -> Value:
    """Bit i: lane i falls into `bucket`."""
    same = e.b.icmp_signed("==", _bucket(e, x, largest), e.splat(e.b.trunc(bucket, i32), v16i32))
    return e.b.zext(e.b.bitcast(same, ir.IntType(16)), i64)


@kernel(F, F)
def weight_of(e: Emitter, shifted: Value) -> Value:
    """As one lane of `weights16`: e**shifted, 0 far down."""
    return e.b.extract_element(_exp_or_zero(e, e.splat(shifted, v16f32)), e.c(0, i32))


@kernel(_D, I)
def load_f64(e: Emitter, a: Value) -> Value:
    """A word of the request, a mass or a sum."""
    return e.load(a, ir.DoubleType(), 0, 8)


@kernel(N, I, _D)
def store_f64(e: Emitter, a: Value, v: Value) -> None:
    """Its opposite."""
    e.store(v, a, 0, 8)
