"""Float32 to super-blocks of 256 weights: q4_k, q5_k and q6_k.

For each group of weights some step widths around the plain one are tried. Codes follow from the
width, the best scale (and minimum) for these codes is a weighted least-squares fit in closed form,
and the fit of least weighted error stays. Then scales are rounded to the super-block's integers,
and codes are chosen once more for what will be read back.

A super-block is divided by a power of two before the search, so that neither squares of huge
weights nor those of tiny ones leave float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastllm.quants.blocks import BLOCKS

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]

# How many steps more or fewer than the plain width the largest weight is away. Affine fits go up,
# each from the minimum that the best one so far found; on normal and Laplace weights this range is
# 0.6 % better than -0.9 to 1.1 from the plain minimum, and as good as twice as many steps.
_AFFINE_OFFSETS = np.arange(-1.8, 0.65, 0.2, dtype=np.float32)
_SYMMETRIC_OFFSETS = np.arange(-0.9, 0.95, 0.1, dtype=np.float32)
_TOP_SCALE = 63  # six bits


def _normalized(x: FloatArray) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Return super-blocks divided by a power of two, the powers [n, 1], and which are not finite.

    What is not finite is searched as zeros.
    """
    broken = ~np.isfinite(x).all(axis=1, keepdims=True)
    x = np.where(broken, np.float32(0), x)
    _, exponent = np.frexp(np.abs(x).max(axis=1, keepdims=True))
    power: FloatArray = np.ldexp(np.float32(1), exponent)
    return np.ldexp(x, -exponent), power, np.asarray(broken)


def _divided(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return a / b, and 0 where b is 0."""
    result: FloatArray = np.divide(a, b, out=np.zeros_like(a), where=b != 0)
    return result


def _sum(*factors: FloatArray) -> FloatArray:
    """Sum the product of arrays of the same shape along the last axis."""
    axes = "ijk"[: factors[0].ndim]
    total: FloatArray = np.einsum(",".join([axes] * len(factors)) + "->" + axes[:-1], *factors)
    return total


def _fit_affine(x: FloatArray, top: int) -> tuple[FloatArray, FloatArray]:
    """Return scale and minimum (>= 0, to be subtracted) of each group, float32[groups] each.

    Large weights matter more: each error counts with the group's root mean square plus the
    weight's magnitude.
    """
    weight = np.abs(x)
    weight += np.sqrt(np.mean(x * x, axis=1, keepdims=True))
    high = x.max(axis=1)
    best_low = np.minimum(x.min(axis=1), np.float32(0))
    weighted = weight * x
    sw, sx, sxx = weight.sum(axis=1), weighted.sum(axis=1), _sum(weighted, x)
    best_error = np.full(len(x), np.inf, np.float32)
    best_scale = (high - best_low) / np.float32(top)
    for offset in _AFFINE_OFFSETS:
        width = high - best_low
        inverse = _divided(np.full_like(width, np.float32(top) + offset), width)
        codes = (x - best_low[:, np.newaxis]) * inverse[:, np.newaxis]
        np.rint(codes, out=codes)
        np.clip(codes, np.float32(0), np.float32(top), out=codes)
        product = weight * codes
        sc, scc, sxc = product.sum(axis=1), _sum(product, codes), _sum(product, x)
        determinant = sw * scc - sc * sc
        # All codes (nearly) equal: what is left of the difference is rounding noise.
        determinant[determinant < np.float32(1e-4) * sw * scc] = 0
        scale = _divided(sw * sxc - sx * sc, determinant)
        base = _divided(scc * sx - sc * sxc, determinant)
        # A minimum cannot be subtracted the other way round: the best scale without one then.
        positive = base > 0
        scale = np.where(positive, _divided(sxc, scc), scale)
        base = np.where(positive, np.float32(0), base)
        error = sxx + scale * (scale * scc - 2 * sxc + 2 * base * sc) + base * (base * sw - 2 * sx)
        better = (error < best_error) & (scale > 0)
        np.copyto(best_error, error, where=better)
        np.copyto(best_scale, scale, where=better)
        np.copyto(best_low, base, where=better)
    return best_scale, -best_low


def _rounded(values: FloatArray, unit: FloatArray, top: int) -> FloatArray:
    """Return whole multiples of the super-block's unit, 0 to top: float32[n, groups]."""
    whole = np.rint(_divided(values, np.broadcast_to(unit, values.shape)))
    clipped: FloatArray = np.clip(whole, np.float32(0), np.float32(top))
    return clipped


def _unit(values: FloatArray, top: int, power: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the float16 unit of each super-block, at its own size and as the search sees it."""
    with np.errstate(over="ignore"):
        stored = (values.max(axis=1, keepdims=True) / np.float32(top) * power).astype(np.float16)
    return stored, stored.astype(np.float32) / power


def _quantize_affine(name: str, top: int) -> Callable[[FloatArray], ByteArray]:
    def quantize(x: FloatArray) -> ByteArray:
        n = len(x)
        scaled, power, broken = _normalized(x)
        scale, minimum = (found.reshape(n, 8) for found in _fit_affine(scaled.reshape(-1, 32), top))
        d, step = _unit(scale, _TOP_SCALE, power)
        dmin, low_step = _unit(minimum, _TOP_SCALE, power)
        scales = _rounded(scale, step, _TOP_SCALE)
        minimums = _rounded(minimum, low_step, _TOP_SCALE)
        width = (step * scales)[:, :, np.newaxis]
        codes = scaled.reshape(n, 8, 32) + (low_step * minimums)[:, :, np.newaxis]
        codes = _divided(codes, np.broadcast_to(width, codes.shape))
        codes = np.fmin(np.fmax(np.rint(codes), np.float32(0)), np.float32(top)).astype(np.uint8)
        block = np.empty(n, BLOCKS[name].record)
        block["d"] = np.where(broken, np.float16(np.nan), d)[:, 0]
        block["dmin"] = dmin[:, 0]
        block["scales"] = _six_bit_pairs(scales.astype(np.uint8), minimums.astype(np.uint8))
        # Two groups share bytes: the first in the low halves, the second in the high ones.
        pairs = (codes & np.uint8(15)).reshape(n, 4, 2, 32)
        block["qs"] = (pairs[:, :, 0] | (pairs[:, :, 1] << np.uint8(4))).reshape(n, 128)
        if block.dtype.names is not None and "qh" in block.dtype.names:
            # Bit g of byte j is the fifth bit of weight j of group g.
            block["qh"] = np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")[:, 0]
        return block.view(np.uint8).reshape(n, -1)

    return quantize


def _six_bit_pairs(scales: ByteArray, minimums: ByteArray) -> ByteArray:
    """Pack 8 scales and 8 minimums of six bits: two of uint8[n, 8] -> uint8[n, 12]."""
    high = np.uint8(0x30)
    first = scales[:, :4] | ((scales[:, 4:] & high) << np.uint8(2))
    second = minimums[:, :4] | ((minimums[:, 4:] & high) << np.uint8(2))
    third = (scales[:, 4:] & np.uint8(15)) | ((minimums[:, 4:] & np.uint8(15)) << np.uint8(4))
    return np.concatenate([first, second, third], axis=1)


def _fit_symmetric(x: FloatArray) -> FloatArray:
    """Return the scale of each group for codes -32 to 31, of either sign: float32[groups].

    Errors count with the square of the weight.
    """
    where = np.abs(x).argmax(axis=1)[:, np.newaxis]
    largest = np.take_along_axis(x, where, axis=1)
    inverse = _divided(np.ones_like(largest), largest)
    weighted = x * x
    product_x = weighted * x
    best = np.zeros(len(x), np.float32)
    scale = np.zeros(len(x), np.float32)
    for offset in _SYMMETRIC_OFFSETS:
        codes = x * (inverse * (np.float32(-32) + offset))
        np.rint(codes, out=codes)
        np.clip(codes, np.float32(-32), np.float32(31), out=codes)
        sxc, scc = _sum(product_x, codes), _sum(weighted, codes, codes)
        gain = _divided(sxc * sxc, scc)  # how much of the weighted square the fit explains
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(scale, _divided(sxc, scc), where=better)
    return scale


def _quantize_q6_k(x: FloatArray) -> ByteArray:
    n = len(x)
    scaled, power, broken = _normalized(x)
    scale = _fit_symmetric(scaled.reshape(-1, 16)).reshape(n, 16)
    # The scale of largest magnitude becomes -128, whatever its sign.
    where = np.abs(scale).argmax(axis=1)[:, np.newaxis]
    with np.errstate(over="ignore"):
        largest = np.take_along_axis(scale, where, axis=1)
        d = (largest / np.float32(-128) * power).astype(np.float16)
    step = d.astype(np.float32) / power
    scales = np.rint(_divided(scale, np.broadcast_to(step, scale.shape)))
    scales = np.fmin(np.fmax(scales, np.float32(-128)), np.float32(127))
    width = (step * scales)[:, :, np.newaxis]
    codes = scaled.reshape(n, 16, 16)
    codes = np.rint(_divided(codes, np.broadcast_to(width, codes.shape)))
    codes = np.fmin(np.fmax(codes, np.float32(-32)), np.float32(31)) + np.float32(32)
    runs = codes.astype(np.uint8).reshape(n, 2, 4, 32)  # two halves of four runs
    low = (runs & np.uint8(15)).reshape(n, 2, 2, 64)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, np.newaxis]
    block = np.empty(n, BLOCKS["q6_k"].record)
    block["ql"] = (low[:, :, 0] | (low[:, :, 1] << np.uint8(4))).reshape(n, 128)
    block["qh"] = np.bitwise_or.reduce((runs >> np.uint8(4)) << shifts, axis=2).reshape(n, 64)
    block["scales"] = scales.astype(np.int8)
    block["d"] = np.where(broken, np.float16(np.nan), d)[:, 0]
    return block.view(np.uint8).reshape(n, -1)


QUANTIZE: dict[str, Callable[[FloatArray], ByteArray]] = {
    "q4_k": _quantize_affine("q4_k", 15),
    "q5_k": _quantize_affine("q5_k", 31),
    "q6_k": _quantize_q6_k,
}
