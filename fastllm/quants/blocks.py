"""The table of tensor types: how many elements make a block, and how many bytes it takes.

Names are ggml's in lower case, ids and sizes those of GGUF files
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). A float type is a block of one element.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastllm.arguments import shown
from fastllm.errors import FormatError, UnsupportedError


@dataclass(frozen=True)
class BlockFormat:
    """One tensor type.

    Attributes
    ----------
    name : str
        "f32", "q4_0", "q4_k", ...
    ggml_id : int
        Number of the type in GGUF files.
    elements, bytes : int
        Elements in a block, and its size in the file.
    record : numpy dtype
        The fields of a block in file order, little endian, no padding.
    """

    name: str
    ggml_id: int
    elements: int
    bytes: int
    record: np.dtype[np.void]


def _format(name: str, ggml_id: int, elements: int, size: int, *fields: object) -> BlockFormat:
    record = np.dtype(list(fields))
    if record.itemsize != size:
        raise AssertionError(f"{name}: fields take {record.itemsize} bytes, a block {size}")
    return BlockFormat(name, ggml_id, elements, size, record)


# The sizes are written out as the file format has them; the records are derived independently, so
# that a slip in either is found at import.
_ALL = (
    _format("f32", 0, 1, 4, ("x", "<f4")),
    _format("f16", 1, 1, 2, ("x", "<f2")),
    _format("q4_0", 2, 32, 18, ("d", "<f2"), ("qs", "u1", 16)),
    _format("q4_1", 3, 32, 20, ("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)),
    _format("q5_0", 6, 32, 22, ("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)),
    _format("q5_1", 7, 32, 24, ("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)),
    _format("q8_0", 8, 32, 34, ("d", "<f2"), ("qs", "i1", 32)),
    _format(
        "q2_k", 10, 256, 84, ("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")
    ),
    _format(
        "q3_k", 11, 256, 110,
        ("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2"),
    ),
    _format(
        "q4_k", 12, 256, 144, ("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)
    ),
    _format(
        "q5_k", 13, 256, 176,
        ("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128),
    ),
    _format(
        "q6_k", 14, 256, 210,
        ("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2"),
    ),
    _format("iq4_nl", 20, 32, 18, ("d", "<f2"), ("qs", "u1", 16)),
    _format(
        "iq4_xs", 23, 256, 136,
        ("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128),
    ),
    _format("i8", 24, 1, 1, ("x", "i1")),
    _format("i16", 25, 1, 2, ("x", "<i2")),
    _format("i32", 26, 1, 4, ("x", "<i4")),
    _format("i64", 27, 1, 8, ("x", "<i8")),
    _format("f64", 28, 1, 8, ("x", "<f8")),
    _format("bf16", 30, 1, 2, ("x", "<u2")),
)  # fmt: skip

#: Every type that fastllm reads, by name.
BLOCKS: dict[str, BlockFormat] = {block.name: block for block in _ALL}

_BY_ID: dict[int, BlockFormat] = {block.ggml_id: block for block in _ALL}
if len(_BY_ID) != len(_ALL) or len(BLOCKS) != len(_ALL):
    raise AssertionError("two tensor types share a name or an id")

# Types that ggml knows and fastllm does not, so that a refusal can name them.
_NOT_BUILT = {
    9: "q8_1", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 21: "iq3_s",
    22: "iq2_s", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4", 41: "q1_0",
}  # fmt: skip


def by_id(ggml_id: int) -> BlockFormat:
    """Return the type that a GGUF file calls `ggml_id`.

    Raises
    ------
    UnsupportedError
        No such type, or one that is not built.
    """
    block = _BY_ID.get(ggml_id)
    if block is None:
        name = _NOT_BUILT.get(ggml_id)
        wanted = f"type {name} (id {ggml_id})" if name else f"unknown type id {ggml_id}"
        raise UnsupportedError(f"tensor {wanted} is not built; built: {', '.join(BLOCKS)}")
    return block


def by_name(name: str) -> BlockFormat:
    """Return the type called `name`; `UnsupportedError` if it is not built."""
    block = BLOCKS.get(name)
    if block is None:
        raise UnsupportedError(
            f"tensor type {shown(name)} is not built; built: {', '.join(BLOCKS)}"
        )
    return block


def row_bytes(type: str, n: int) -> int:
    """Return the bytes of a row of `n` elements.

    Raises
    ------
    UnsupportedError
        The type is not built.
    FormatError
        `n` is not a whole number of blocks.
    """
    block = by_name(type)
    blocks, rest = divmod(n, block.elements)
    if rest or n < 0:
        raise FormatError(f"a {type} row is a whole number of {block.elements} elements, not {n}")
    return blocks * block.bytes
