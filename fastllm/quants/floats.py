"""Float and integer rows to float32 and back: f32, f16, bf16, f64, i8 to i64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastllm.quants.blocks import BLOCKS

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def dequantize_bf16(blocks: ByteArray) -> FloatArray:
    """Widen bfloat16, the upper half of a float32: uint8[n, 2] -> float32[n, 1]."""
    wide: FloatArray = (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


def quantize_bf16(x: FloatArray) -> ByteArray:
    """Round to the nearest bfloat16, ties to even: float32[n, 1] -> uint8[n, 2].

    A NaN stays one: its payload is cut and the quiet bit set, so that no carry can turn it into
    an infinity.
    """
    bits = x.view(np.uint32)
    # Half a unit in the last kept place, less one bit unless that place is odd. This may carry into
    # the exponent, which is right; it can wrap only for a NaN, which is replaced below.
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + (np.uint32(0x7FFF) + odd)) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    half: ByteArray = np.where(is_nan, quiet, rounded).astype("<u2").view(np.uint8)
    return half


def _caster(name: str) -> Callable[[ByteArray], FloatArray]:
    stored = BLOCKS[name].record["x"]

    def cast(blocks: ByteArray) -> FloatArray:
        return blocks.view(stored).astype(np.float32)

    return cast


def _narrower(name: str) -> Callable[[FloatArray], ByteArray]:
    stored = BLOCKS[name].record["x"]

    def narrow(x: FloatArray) -> ByteArray:
        return x.astype(stored).view(np.uint8)

    return narrow


DEQUANTIZE: dict[str, Callable[[ByteArray], FloatArray]] = {
    **{name: _caster(name) for name in ("f32", "f16", "f64", "i8", "i16", "i32", "i64")},
    "bf16": dequantize_bf16,
}
QUANTIZE: dict[str, Callable[[FloatArray], ByteArray]] = {
    **{name: _narrower(name) for name in ("f32", "f16")},
    "bf16": quantize_bf16,
}
