"""How a matrix lies in memory for the kernels: panels of 16 rows, lane r = row r.

A panel is one linear stream: for every *unit* of columns first the 16-bit fields (scales) of the
16 rows, 32 bytes each, then 64-byte pieces in which dword r belongs to row r, in the order in
which the kernel wants them. Quantized codes and scales stay the file's own; only their order
changes, so a packed matrix has the file's size (plus padding of a few formats: offset -1).

Because lanes are rows, a block's scales are a vector, sums never cross lanes, and one row's result
cannot depend on which rows or tokens are computed beside it.

The layout of a unit is a table of *moves*, read by one packing kernel (``kernels.pack``); each
format has its own beside the unpacking of its codes (``kernels.codes``).
"""

from __future__ import annotations

from dataclasses import dataclass

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


def dwords(start: int, count: int, move: int = COPY) -> tuple[tuple[int, int], ...]:
    """Moves of `count` dwords that follow each other from native byte `start` on."""
    return tuple((start + 4 * i, move) for i in range(count))


def pair_of_blocks(
    name: str, size: int, halves: tuple[int, ...], pieces: tuple[tuple[int, int], ...]
) -> PanelLayout:
    """Two 32-column blocks in one unit: keeps 64-byte pieces aligned when a block has one half."""
    both = tuple(h + size * s for s in (0, 1) for h in halves)
    twice = tuple((o + size * s, move) for s in (0, 1) for o, move in pieces)
    return PanelLayout(name, 64, 2 * size, both, twice, "q32")
