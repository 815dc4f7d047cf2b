"""Super-blocks of 256 weights, q2_k to q6_k, to float32.

A super-block is cut into groups of 16 or 32 weights. Each group has a small integer scale (q2_k,
q4_k and q5_k a small integer minimum too), which multiplies the super-block's float16 scale:
``weight = (d * scale) * code - (dmin * minimum)``. The float32 operations have the order of ggml's
reference code, so results are equal bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastllm.quants.block32 import column, records

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]

_TWO_BITS = np.array([0, 2, 4, 6], np.uint8)
_EIGHT_BITS = np.arange(8, dtype=np.uint8)
_HALVES = np.array([0, 4], np.uint8)


def _shifted(packed: ByteArray, run: int, shifts: ByteArray, mask: int) -> ByteArray:
    """Unpack runs of bytes: all codes at the first shift of a run, then all at the second, ...

    Parameters
    ----------
    packed : uint8[n, k]
    run : int
        Bytes in a run; k is a multiple of it.
    shifts : uint8[s]
    mask : int
        Bits of a code.

    Returns
    -------
    uint8[n, k / run, s, run]
    """
    runs = packed.reshape(len(packed), -1, 1, run)
    codes: ByteArray = (runs >> shifts[:, np.newaxis]) & np.uint8(mask)
    return codes


def _six_bit_pairs(scales: ByteArray) -> tuple[ByteArray, ByteArray]:
    """Unpack 8 scales and 8 minimums of six bits, uint8[n, 12] -> two of uint8[n, 8] (q4_k, q5_k).

    Bytes 0-3 hold scales 0-3 in their low six bits, bytes 4-7 minimums 0-3; the two bits left over
    in each are the high bits of numbers 4-7, whose low four bits share bytes 8-11.
    """
    first, second, third = scales[:, 0:4], scales[:, 4:8], scales[:, 8:12]
    high = np.uint8(0x30)
    scale = [first & np.uint8(63), (third & np.uint8(15)) | ((first >> np.uint8(2)) & high)]
    minimum = [second & np.uint8(63), (third >> np.uint8(4)) | ((second >> np.uint8(2)) & high)]
    return np.concatenate(scale, axis=1), np.concatenate(minimum, axis=1)


def _affine(
    block: NDArray[np.void], scale: ByteArray, minimum: ByteArray, codes: ByteArray
) -> FloatArray:
    """Return ``(d * scale) * codes - dmin * minimum``; codes in any shape, groups in order."""
    n, groups = scale.shape
    step = column(block["d"]) * scale.astype(np.float32)
    low = column(block["dmin"]) * minimum.astype(np.float32)
    values = step[:, :, np.newaxis] * codes.reshape(n, groups, -1).astype(np.float32)
    values -= low[:, :, np.newaxis]
    flat: FloatArray = values.reshape(n, -1)
    return flat


def _symmetric(d: FloatArray, scale: NDArray[np.int8], codes: NDArray[np.int8]) -> FloatArray:
    """Return ``(d * scale) * codes``; codes in any shape, groups in order."""
    n, groups = scale.shape
    step = d * scale.astype(np.float32)
    values = step[:, :, np.newaxis] * codes.reshape(n, groups, -1).astype(np.float32)
    flat: FloatArray = values.reshape(n, -1)
    return flat


def _dequantize_q2_k(blocks: ByteArray) -> FloatArray:
    block = records("q2_k", blocks)
    scales = block["scales"]
    codes = _shifted(block["qs"], 32, _TWO_BITS, 3)
    return _affine(block, scales & np.uint8(15), scales >> np.uint8(4), codes)


def _dequantize_q3_k(blocks: ByteArray) -> FloatArray:
    block = records("q3_k", blocks)
    # 16 six-bit scales: four low bits in bytes 0-7 (0-7 low halves, 8-15 high halves), two high
    # bits in bytes 8-11 (number i at bits 2 * (i / 4) of byte 8 + i % 4).
    packed = block["scales"]
    low = _shifted(packed[:, :8], 8, _HALVES, 15).reshape(-1, 16)
    high = _shifted(packed[:, 8:], 4, _TWO_BITS, 3).reshape(-1, 16)
    scale = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    # A *clear* bit of hmask subtracts 4.
    low_codes = _shifted(block["qs"], 32, _TWO_BITS, 3).reshape(-1, 256)
    high_bit = _shifted(block["hmask"], 32, _EIGHT_BITS, 1).reshape(-1, 256)
    codes = (low_codes | (high_bit << np.uint8(2))).view(np.int8) - np.int8(4)
    return _symmetric(column(block["d"]), scale, codes)


def _dequantize_q4_k(blocks: ByteArray) -> FloatArray:
    block = records("q4_k", blocks)
    scale, minimum = _six_bit_pairs(block["scales"])
    return _affine(block, scale, minimum, _shifted(block["qs"], 32, _HALVES, 15))


def _dequantize_q5_k(blocks: ByteArray) -> FloatArray:
    block = records("q5_k", blocks)
    scale, minimum = _six_bit_pairs(block["scales"])
    low = _shifted(block["qs"], 32, _HALVES, 15).reshape(-1, 256)
    high = _shifted(block["qh"], 32, _EIGHT_BITS, 1).reshape(-1, 256)
    return _affine(block, scale, minimum, low | (high << np.uint8(4)))


def _dequantize_q6_k(blocks: ByteArray) -> FloatArray:
    block = records("q6_k", blocks)
    low = _shifted(block["ql"], 64, _HALVES, 15).reshape(-1, 256)
    high = _shifted(block["qh"], 32, _TWO_BITS, 3).reshape(-1, 256)
    codes = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    return _symmetric(column(block["d"]), block["scales"], codes)


DEQUANTIZE: dict[str, Callable[[ByteArray], FloatArray]] = {
    "q2_k": _dequantize_q2_k,
    "q3_k": _dequantize_q3_k,
    "q4_k": _dequantize_q4_k,
    "q5_k": _dequantize_q5_k,
    "q6_k": _dequantize_q6_k,
}
