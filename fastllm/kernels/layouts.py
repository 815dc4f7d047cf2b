"""How a matrix lies in memory for the kernels: panels of 16 rows, lane r = row r.

A panel is one linear stream: for every *unit* of columns first the 16-bit fields (scales) of the
16 rows, 32 bytes each, then 64-byte pieces in which dword r belongs to row r, in the order in
which the kernel wants them. Quantized codes and scales stay the file's own; only their order
changes, so a packed matrix has the file's size (plus padding of a few formats: offset -1).

Because lanes are rows, a block's scales are a vector, sums never cross lanes, and one row's result
cannot depend on which rows or tokens are computed beside it.

The layout of a unit is a table of *moves*, read by one packing kernel (``kernels.pack``) and by the
NumPy reference below. Sources for the native blocks: ggml ``ggml-common.h`` (block_q4_0 ...).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS = 16  # rows of a panel

# What a move does with the dword it copies
COPY, FLIP_SIGNS, SPREAD_BITS = 0, 1, 2
# FLIP_SIGNS: int8 codes become unsigned, code + 128 (x86 multiplies unsigned by signed bytes).
# SPREAD_BITS: the 32 high bits of a q5_0/q5_1 block are reordered so that the bits of piece j (four
# codes) are bits j, 8 + j, 16 + j, 24 + j: one shift and one mask in the kernel.


@dataclass(frozen=True)
class PanelLayout:
    """Layout of one weight format.

    Attributes
    ----------
    name : str
        ggml type name.
    unit : int
        Columns of one unit; columns of a matrix are padded to it with zeros.
    block_bytes : int
        Native bytes of one row in one unit.
    halves : tuple of int
        Native byte offsets of 16-bit fields; offset -1 is 32 bytes of padding.
    dwords : tuple of (int, int)
        (native byte offset, move) of the 64-byte pieces.
    activations : str
        What the kernel multiplies with: "q32", "q256" or "f32" (see ``kernels.quantize``).
    """

    name: str
    unit: int
    block_bytes: int
    halves: tuple[int, ...]
    dwords: tuple[tuple[int, int], ...]
    activations: str

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit of 16 rows."""
        return 32 * len(self.halves) + 64 * len(self.dwords)

    def units(self, columns: int) -> int:
        """Units that hold `columns` columns."""
        return -(-columns // self.unit)

    def panel_bytes(self, columns: int) -> int:
        """Bytes of one panel of 16 rows."""
        return self.units(columns) * self.unit_bytes

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a packed matrix; rows are padded to 16 with zeros."""
        return -(-rows // ROWS) * self.panel_bytes(columns)


def _range(start: int, count: int, move: int = COPY) -> tuple[tuple[int, int], ...]:
    return tuple((start + 4 * i, move) for i in range(count))


def _pair(name: str, size: int, halves: tuple[int, ...], dwords: tuple[tuple[int, int], ...]):  # type: ignore[no-untyped-def]
    """Two 32-column blocks in one unit: keeps 64-byte pieces aligned when a block has one half."""
    both = tuple(h + size * s for s in (0, 1) for h in halves)
    pieces = tuple((o + size * s, move) for s in (0, 1) for o, move in dwords)
    return PanelLayout(name, 64, 2 * size, both, pieces, "q32")


def _q6_pieces() -> tuple[tuple[int, int], ...]:
    """Four int8 scale dwords, then for (h, p): high bits and low bits of weights 128h+32q+16p."""
    pieces = list(_range(192, 4))
    for h in (0, 1):
        for p in (0, 1):
            pieces += _range(128 + 32 * h + 16 * p, 4)
            pieces += _range(64 * h + 16 * p, 4)
            pieces += _range(64 * h + 32 + 16 * p, 4)
    return tuple(pieces)


def _in_halves(start: int) -> tuple[tuple[int, int], ...]:
    """16 dwords of 2-bit codes in the order (h, p) in which q2_k and q3_k use them."""
    return tuple(m for h in (0, 1) for p in (0, 1) for m in _range(start + 32 * h + 16 * p, 4))


LAYOUTS: dict[str, PanelLayout] = {
    layout.name: layout
    for layout in (
        _pair("q4_0", 18, (0,), _range(2, 4)),
        PanelLayout("q4_1", 32, 20, (0, 2), _range(4, 4), "q32"),
        _pair("q5_0", 22, (0,), ((2, SPREAD_BITS), *_range(6, 4))),
        PanelLayout("q5_1", 32, 24, (0, 2), ((4, SPREAD_BITS), *_range(8, 4)), "q32"),
        _pair("q8_0", 34, (0,), _range(2, 8, FLIP_SIGNS)),
        _pair("iq4_nl", 18, (0,), _range(2, 4)),
        PanelLayout("q2_k", 256, 84, (80, 82), (*_range(0, 4), *_in_halves(16)), "q256"),
        PanelLayout(
            "q3_k", 256, 110, (108, -1), (*_range(96, 3), *_range(0, 8), *_in_halves(32)), "q256"
        ),
        PanelLayout("q4_k", 256, 144, (0, 2), (*_range(4, 3), *_range(16, 32)), "q256"),
        PanelLayout(
            "q5_k", 256, 176, (0, 2), (*_range(4, 3), *_range(16, 8), *_range(48, 32)), "q256"
        ),
        PanelLayout("q6_k", 256, 210, (208, -1), _q6_pieces(), "q256"),
        PanelLayout("iq4_xs", 256, 136, (0, 2), (*_range(4, 1), *_range(8, 32)), "q256"),
        PanelLayout("f32", 4, 16, (), _range(0, 4), "f32"),
        PanelLayout("f16", 4, 8, (0, 2, 4, 6), (), "f32"),
        PanelLayout("bf16", 4, 8, (0, 2, 4, 6), (), "f32"),
    )
}


def native_unit_columns(name: str) -> int:
    """Columns of one native block (the file's), which may be half a unit."""
    layout = LAYOUTS[name]
    return {"q32": 32, "q256": 256, "f32": 1}[layout.activations]


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
