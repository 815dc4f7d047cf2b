"""iq4_nl and iq4_xs to float32: four-bit codes that index a fixed table of 16 uneven steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastllm.quants.block32 import column, nibbles, records

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]

#: int8[16]: what a code means, in units of the block's scale.
IQ4_VALUES: NDArray[np.int8] = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
_VALUES_F32 = IQ4_VALUES.astype(np.float32)


def _dequantize_iq4_nl(blocks: ByteArray) -> FloatArray:
    block = records("iq4_nl", blocks)
    values: FloatArray = column(block["d"]) * _VALUES_F32[nibbles(block["qs"])]
    return values


def _dequantize_iq4_xs(blocks: ByteArray) -> FloatArray:
    block = records("iq4_xs", blocks)
    # Scale i of 8: low four bits in half i % 2 of scales_l[i / 2], high two in bits 2i of scales_h.
    pairs = block["scales_l"][:, :, np.newaxis] >> np.array([0, 4], np.uint8)
    low = pairs.reshape(-1, 8) & np.uint8(15)
    high = block["scales_h"][:, np.newaxis] >> np.arange(0, 16, 2, dtype=np.uint16)
    high_bits = (high & np.uint16(3)).astype(np.uint8) << np.uint8(4)
    scale = (low | high_bits).view(np.int8) - np.int8(32)
    step = column(block["d"]) * scale.astype(np.float32)
    # Each group of 32 has its own 16 bytes: low halves, then high halves.
    codes = nibbles(block["qs"].reshape(-1, 16)).reshape(len(block), 8, 32)
    values: FloatArray = (step[:, :, np.newaxis] * _VALUES_F32[codes]).reshape(len(block), 256)
    return values


DEQUANTIZE: dict[str, Callable[[ByteArray], FloatArray]] = {
    "iq4_nl": _dequantize_iq4_nl,
    "iq4_xs": _dequantize_iq4_xs,
}
