"""exp, exp2, tanh, erf and the activations on 16 lanes, as polynomials: no libm on any road."""

from __future__ import annotations

from llvmlite import ir

from fastllm.kernels.emit import Emitter, Value, kernel, v16f32, v16i32
from fastllm.kernels.memory import F, V
from fastllm.kernels.quantize import ROUND, ROUND_BITS


def _clamp(e: Emitter, x: Value, low: float, high: float) -> Value:
    """Clamp to [low, high]; NaN passes through."""
    b = e.b
    floor, ceiling = e.splat(low, v16f32), e.splat(high, v16f32)
    x = b.select(b.fcmp_ordered("<", x, floor), floor, x)
    return b.select(b.fcmp_ordered(">", x, ceiling), ceiling, x)


def _power_of_two(e: Emitter, shifted: Value, p: Value) -> Value:
    """p * 2**n, n being the integer in the low mantissa bits of `shifted` (see ROUND)."""
    b = e.b
    n = b.sub(b.bitcast(shifted, v16i32), e.splat(ROUND_BITS, v16i32))
    return b.bitcast(b.add(b.bitcast(p, v16i32), e.shl(n, 23)), v16f32)


def _polynomial(e: Emitter, r: Value, coefficients: tuple[float, ...]) -> Value:
    p = e.splat(coefficients[0], v16f32)
    for c in coefficients[1:]:
        p = e.fma(p, r, e.splat(c, v16f32))
    return p


def exp2(e: Emitter, x: Value) -> Value:
    """2**x for x <= 126, flushed to 2**-126 below; relative error about 2e-7.

    Taylor coefficients ln(2)**k / k! on [-0.5, 0.5]: the degree-6 remainder is below 1.2e-7.
    """
    x = _clamp(e, x, -126.0, 126.0)
    shifted = e.b.fadd(x, e.splat(ROUND, v16f32))
    r = e.b.fsub(x, e.b.fsub(shifted, e.splat(ROUND, v16f32)))
    log2 = 0.6931471805599453
    terms = [1.0]
    for k in range(1, 7):
        terms.append(terms[-1] * log2 / k)
    return _power_of_two(e, shifted, _polynomial(e, r, tuple(reversed(terms))))


def exp2_rough(e: Emitter, x: Value) -> Value:
    """2**x for -126 <= x <= 126 (elsewhere anything); relative error 2.9e-6, exact at integers.

    Least maximal relative error on [-0.5, 0.5] of all polynomials of degree 4 that begin with 1.
    """
    shifted = e.b.fadd(x, e.splat(ROUND, v16f32))
    r = e.b.fsub(x, e.b.fsub(shifted, e.splat(ROUND, v16f32)))
    coefficients = (0.00958285, 0.05590643, 0.24024099, 0.69312419, 1.0)
    return _power_of_two(e, shifted, _polynomial(e, r, coefficients))


def exp(e: Emitter, x: Value) -> Value:
    """e**x on [-87, 88]: x = n ln 2 + r with ln 2 in two parts, then as `exp2`."""
    x = _clamp(e, x, -87.0, 88.0)
    shifted = e.fma(x, e.splat(1.4426950408889634, v16f32), e.splat(ROUND, v16f32))
    n = e.b.fsub(shifted, e.splat(ROUND, v16f32))
    r = e.fma(n, e.splat(-0.693359375, v16f32), x)  # 9 bits: exact product
    r = e.fma(n, e.splat(2.12194440e-4, v16f32), r)
    terms = [1.0]
    for k in range(1, 7):
        terms.append(terms[-1] / k)
    return _power_of_two(e, shifted, _polynomial(e, r, tuple(reversed(terms))))


def sigmoid(e: Emitter, x: Value) -> Value:
    """1 / (1 + exp(-x))."""
    one = e.splat(1.0, v16f32)
    return e.b.fdiv(one, e.b.fadd(one, exp(e, e.b.fsub(e.splat(-0.0, v16f32), x))))


def tanh(e: Emitter, x: Value) -> Value:
    """1 - 2 / (1 + exp(2 x)); absolute error about 1e-7."""
    one = e.splat(1.0, v16f32)
    denominator = e.b.fadd(one, exp(e, e.b.fadd(x, x)))
    return e.b.fsub(one, e.b.fdiv(e.splat(2.0, v16f32), denominator))


def silu(e: Emitter, x: Value) -> Value:
    """x * sigmoid(x)."""
    return e.b.fmul(x, sigmoid(e, x))


def gelu_tanh(e: Emitter, x: Value) -> Value:
    """x / 2 * (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x**3)."""
    cube = e.b.fmul(x, e.b.fmul(x, x))
    u = e.fma(cube, e.splat(0.044715, v16f32), x)
    return e.b.fmul(x, sigmoid(e, e.b.fmul(u, e.splat(2 * 0.7978845608028654, v16f32))))


def gelu(e: Emitter, x: Value) -> Value:
    """x / 2 * (1 + erf(x / sqrt 2)); erf by Abramowitz and Stegun 7.1.26, error <= 1.5e-7."""
    b = e.b
    z = b.fmul(x, e.splat(0.7071067811865476, v16f32))
    bits = b.bitcast(z, v16i32)
    magnitude = b.bitcast(b.and_(bits, e.splat(0x7FFFFFFF, v16i32)), v16f32)
    one = e.splat(1.0, v16f32)
    t = b.fdiv(one, e.fma(magnitude, e.splat(0.3275911, v16f32), one))
    series = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    p = b.fmul(_polynomial(e, t, series), t)
    square = b.fmul(magnitude, magnitude)
    tail = b.fmul(p, exp(e, b.fsub(e.splat(-0.0, v16f32), square)))
    erf = b.fsub(one, tail)
    sign = b.and_(bits, ir.Constant(v16i32, [-(1 << 31)] * 16))
    erf = b.bitcast(b.or_(b.bitcast(erf, v16i32), sign), v16f32)
    return b.fmul(b.fmul(x, e.splat(0.5, v16f32)), b.fadd(one, erf))


def relu(e: Emitter, x: Value) -> Value:
    """max(x, 0); NaN stays."""
    zero = e.splat(0.0, v16f32)
    return e.b.select(e.b.fcmp_ordered("<", x, zero), zero, x)


# As words of compiled code, on 16 lanes or on one value
silu16, gelu16, gelu_tanh16 = kernel(V, V)(silu), kernel(V, V)(gelu), kernel(V, V)(gelu_tanh)
relu16, tanh16 = kernel(V, V)(relu), kernel(V, V)(tanh)


@kernel(F, F)
def exp2_scalar(e: Emitter, x: Value) -> Value:
    """One lane of `exp2`."""
    return e.b.extract_element(exp2(e, e.splat(x, v16f32)), ir.Constant(ir.IntType(32), 0))


@kernel(F, F)
def sqrt(e: Emitter, x: Value) -> Value:
    """Square root of one value."""
    return e.call("llvm.sqrt.f32", x.type, x)
