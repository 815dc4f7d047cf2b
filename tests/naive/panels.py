"""How rows become panels, in plain NumPy: the oracle of the packing kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels.layouts import LAYOUTS
from fastllm.kernels.panels import FLIP_SIGNS, ROWS, SPREAD_BITS


def spread_bits(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Bit reordering of SPREAD_BITS, for any array of dwords.

    Native bit i is the high bit of code i. Codes 4g..4g+3 (low nibbles of piece g, i < 16) go to
    bits g + 8b, codes 16+4g..16+4g+3 (high nibbles) to bits 4 + g + 8b.
    """
    out = np.zeros_like(bits)
    for i in range(32):
        piece, byte = (i % 16) // 4 + 4 * (i // 16), i % 4
        out |= ((bits >> np.uint32(i)) & np.uint32(1)) << np.uint32(piece + 8 * byte)
    return out


def pack_reference(name: str, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack native rows; the plain NumPy twin of the packing kernel.

    Parameters
    ----------
    rows : uint8[num_rows, row_bytes]

    Returns
    -------
    uint8[num_panels, panel_bytes]
    """
    layout = LAYOUTS[name]
    num_units = -(-rows.shape[1] // layout.block_bytes)
    panels = -(-rows.shape[0] // ROWS)
    native = np.zeros((panels * ROWS, num_units * layout.block_bytes), np.uint8)
    native[: rows.shape[0], : rows.shape[1]] = rows
    blocks = native.reshape(panels, ROWS, num_units, layout.block_bytes).transpose(0, 2, 1, 3)
    parts = []
    for offset in layout.halves:
        if offset < 0:
            parts.append(np.zeros((panels, num_units, 32), np.uint8))
        else:
            parts.append(blocks[..., offset : offset + 2].reshape(panels, num_units, 32))
    for offset, move in layout.dwords:
        piece = np.ascontiguousarray(blocks[..., offset : offset + 4]).view(np.uint32)[..., 0]
        if move == FLIP_SIGNS:
            piece = piece ^ np.uint32(0x80808080)
        elif move == SPREAD_BITS:
            piece = spread_bits(piece)
        parts.append(piece.view(np.uint8).reshape(panels, num_units, 64))
    return np.concatenate(parts, axis=-1).reshape(panels, -1)
