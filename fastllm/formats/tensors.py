"""TensorInfo: where one tensor lies in a file, and of which type it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, not read yet.

    Attributes
    ----------
    name : str
        Name in the file.
    type : str
        ggml type name in lower case: "f32", "f16", "bf16", "q4_0", "q4_k", "iq4_xs", ...
    shape : tuple of int
        Slowest axis first (a matrix is [out_features, in_features]), whatever the file's order.
    path : str
        File that holds the bytes.
    offset, nbytes : int
        Absolute place of the bytes in that file; checked against its size when the file was opened.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    path: str
    offset: int
    nbytes: int
