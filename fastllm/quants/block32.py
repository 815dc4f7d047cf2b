"""Blocks of 32 weights, q8_0, q4_0, q4_1, q5_0 and q5_1, to float32 and back.

A block is one or two float16 numbers and 32 codes. The symmetric types mean
``d * (code - middle)``, the others ``d * code + m``. Byte ``j`` of ``qs`` holds code ``j`` in its
low half and code ``j + 16`` in its high half; the fifth bit of code ``j`` is bit ``j`` of ``qh``.

The float32 operations have the order of ggml's reference code, so results are equal bit by bit.
Rounding works on any finite input; a NaN or infinity makes the scale of its whole block NaN or
infinite (codes 0 where undefined), so that the block reads back as not finite: nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.quants.blocks import BLOCKS

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def records(name: str, blocks: ByteArray) -> NDArray[np.void]:
    """View uint8[n, block bytes] as n records with the fields of `blocks.BLOCKS`."""
    view: NDArray[np.void] = blocks.view(BLOCKS[name].record)[:, 0]
    return view


def column(field: NDArray[Any]) -> FloatArray:
    """Widen one float16 of each record: float16[n] -> float32[n, 1]."""
    return field.astype(np.float32)[:, np.newaxis]


def nibbles(qs: ByteArray) -> ByteArray:
    """Return the low halves of each row, then its high halves: uint8[n, k] -> uint8[n, 2k]."""
    return np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=1)


def _fifth_bits(qh: ByteArray) -> ByteArray:
    """Return bit j of qh as 0 or 16: uint8[n, 4] -> uint8[n, 32]."""
    return np.unpackbits(qh, axis=1, bitorder="little") << np.uint8(4)


def _dequantize_q8_0(blocks: ByteArray) -> FloatArray:
    block = records("q8_0", blocks)
    values: FloatArray = column(block["d"]) * block["qs"].astype(np.float32)
    return values


def _dequantize_q4_0(blocks: ByteArray) -> FloatArray:
    block = records("q4_0", blocks)
    codes = nibbles(block["qs"]).view(np.int8) - np.int8(8)
    values: FloatArray = column(block["d"]) * codes.astype(np.float32)
    return values


def _dequantize_q4_1(blocks: ByteArray) -> FloatArray:
    block = records("q4_1", blocks)
    codes = nibbles(block["qs"]).astype(np.float32)
    values: FloatArray = column(block["d"]) * codes + column(block["m"])
    return values


def _dequantize_q5_0(blocks: ByteArray) -> FloatArray:
    block = records("q5_0", blocks)
    codes = (nibbles(block["qs"]) | _fifth_bits(block["qh"])).view(np.int8) - np.int8(16)
    values: FloatArray = column(block["d"]) * codes.astype(np.float32)
    return values


def _dequantize_q5_1(blocks: ByteArray) -> FloatArray:
    block = records("q5_1", blocks)
    codes = (nibbles(block["qs"]) | _fifth_bits(block["qh"])).astype(np.float32)
    values: FloatArray = column(block["d"]) * codes + column(block["m"])
    return values


def _inverse(d: FloatArray) -> FloatArray:
    """Return 1 / d, and 0 where d is 0."""
    result: FloatArray = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    return result


def _codes(scaled: FloatArray, top: int) -> ByteArray:
    """Cut `scaled` to whole codes in 0..top; NaN becomes 0 (fmax prefers the number)."""
    codes: ByteArray = np.fmin(np.fmax(scaled, np.float32(0)), np.float32(top)).astype(np.uint8)
    return codes


def _pack(block: NDArray[np.void], codes: ByteArray) -> None:
    """Write the low four bits of 32 codes to `qs`, and their fifth bits to `qh` if there is one."""
    low = codes & np.uint8(15)
    block["qs"] = low[:, :16] | (low[:, 16:] << np.uint8(4))
    if block.dtype.names is not None and "qh" in block.dtype.names:
        block["qh"] = np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")


def _quantize_symmetric(name: str, middle: int) -> Callable[[FloatArray], ByteArray]:
    def quantize(x: FloatArray) -> ByteArray:
        # The weight of largest magnitude gets code 0, exactly -middle steps, whatever its sign.
        where = np.abs(x).argmax(axis=1)[:, np.newaxis]
        d = np.take_along_axis(x, where, axis=1) / np.float32(-middle)
        block = np.empty(len(x), BLOCKS[name].record)
        block["d"] = d[:, 0]
        _pack(block, _codes(x * _inverse(d) + np.float32(middle + 0.5), 2 * middle - 1))
        return block.view(np.uint8).reshape(len(x), -1)

    return quantize


def _quantize_affine(name: str, top: int) -> Callable[[FloatArray], ByteArray]:
    def quantize(x: FloatArray) -> ByteArray:
        low = x.min(axis=1, keepdims=True)
        d = (x.max(axis=1, keepdims=True) - low) / np.float32(top)
        block = np.empty(len(x), BLOCKS[name].record)
        block["d"] = d[:, 0]
        block["m"] = low[:, 0]
        _pack(block, _codes((x - low) * _inverse(d) + np.float32(0.5), top))
        return block.view(np.uint8).reshape(len(x), -1)

    return quantize


def _quantize_q8_0(x: FloatArray) -> ByteArray:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    # Half away from zero. Adding 0.5 first would round 0.49999997 up, so the fraction decides.
    whole = np.trunc(scaled)
    whole += np.trunc(np.float32(2) * (scaled - whole))
    block = np.empty(len(x), BLOCKS["q8_0"].record)
    block["d"] = d[:, 0]
    block["qs"] = (np.fmin(np.fmax(whole, np.float32(-128)), np.float32(127))).astype(np.int8)
    return block.view(np.uint8).reshape(len(x), -1)


DEQUANTIZE: dict[str, Callable[[ByteArray], FloatArray]] = {
    "q8_0": _dequantize_q8_0,
    "q4_0": _dequantize_q4_0,
    "q4_1": _dequantize_q4_1,
    "q5_0": _dequantize_q5_0,
    "q5_1": _dequantize_q5_1,
}
QUANTIZE: dict[str, Callable[[FloatArray], ByteArray]] = {
    "q8_0": _quantize_q8_0,
    "q4_0": _quantize_symmetric("q4_0", 8),
    "q4_1": _quantize_affine("q4_1", 15),
    "q5_0": _quantize_symmetric("q5_0", 16),
    "q5_1": _quantize_affine("q5_1", 31),
}
