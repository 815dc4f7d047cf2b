"""What do the bytes of a block mean? Rows of blocks to float32 and back, in plain NumPy.

`dequantize` is the oracle of the kernels and what small tensors are read with; `quantize` writes
files. Both work on whole rows and go through them a cache-sized slice at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastllm.arguments import shown
from fastllm.errors import FormatError, UnsupportedError
from fastllm.quants import block32, floats, iquants, kquants, kquants_search
from fastllm.quants.blocks import BLOCKS, BlockFormat, by_id, by_name, row_bytes

__all__ = [
    "BLOCKS",
    "QUANTIZABLE",
    "BlockFormat",
    "by_id",
    "by_name",
    "dequantize",
    "quantize",
    "row_bytes",
]

_DEQUANTIZE: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    **floats.DEQUANTIZE,
    **block32.DEQUANTIZE,
    **kquants.DEQUANTIZE,
    **iquants.DEQUANTIZE,
}
_QUANTIZE: dict[str, Callable[[NDArray[np.float32]], NDArray[np.uint8]]] = {
    **floats.QUANTIZE,
    **block32.QUANTIZE,
    **kquants_search.QUANTIZE,
}
if _DEQUANTIZE.keys() != BLOCKS.keys():
    raise AssertionError("a type of the table has no meaning, or the other way round")

#: Names of the types that `quantize` can write.
QUANTIZABLE: tuple[str, ...] = tuple(_QUANTIZE)

# Elements handled at a time: 64 Ki float32 are 256 KiB, and with the few temporaries of their size
# they stay in a core's second-level cache (1-2 MiB).
_SLICE = 1 << 16


def dequantize(type: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the float32 values of rows of blocks.

    Parameters
    ----------
    type : str
        A name in `BLOCKS`.
    raw : uint8[..., row_bytes]
        Rows as they lie in the file; any shape and strides.

    Returns
    -------
    float32[..., n]
        New array. Equal, bit by bit, to ggml's reference code; scales that are not finite give
        values that are not finite.

    Raises
    ------
    UnsupportedError
        The type is not built.
    FormatError
        A row is not a whole number of blocks.
    """
    block = by_name(type)
    num_bytes = raw.shape[-1]
    if raw.dtype != np.uint8 or num_bytes % block.bytes:
        raise FormatError(
            f"{type} rows are uint8, a multiple of {block.bytes} long; got {raw.dtype}[{num_bytes}]"
        )
    blocks = np.ascontiguousarray(raw).reshape(-1, block.bytes)
    out = np.empty((len(blocks), block.elements), np.float32)
    step = max(1, _SLICE // block.elements)
    convert = _DEQUANTIZE[type]
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            out[start : start + step] = convert(blocks[start : start + step])
    return out.reshape(*raw.shape[:-1], num_bytes // block.bytes * block.elements)


def quantize(type: str, x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return rows of blocks that stand for float32 values.

    Parameters
    ----------
    type : str
        A name in `QUANTIZABLE`.
    x : float32[..., n]
        Any shape and strides; n is a multiple of the block.

    Returns
    -------
    uint8[..., row_bytes]
        New array, equal to what ggml's reference code writes; q4_k, q5_k and q6_k have a search
        of their own, as exact as its. A NaN or infinity in a block makes
        its scale NaN or infinite, so that the block reads back as not finite; values too large for
        float16 become infinite.

    Raises
    ------
    UnsupportedError
        fastllm cannot write this type.
    FormatError
        A row is not a whole number of blocks, or not float32.
    """
    convert = _QUANTIZE.get(type)
    if convert is None:
        raise UnsupportedError(f"cannot quantize to {shown(type)}; can: {', '.join(QUANTIZABLE)}")
    block = by_name(type)
    num_bytes = row_bytes(type, x.shape[-1])
    if x.dtype != np.float32:
        raise FormatError(f"quantize takes float32, not {x.dtype}")
    rows = np.ascontiguousarray(x).reshape(-1, block.elements)
    out = np.empty((len(rows), block.bytes), np.uint8)
    step = max(1, _SLICE // block.elements)
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), step):
            out[start : start + step] = convert(rows[start : start + step])
    return out.reshape(*x.shape[:-1], num_bytes)
