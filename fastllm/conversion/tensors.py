"""Which rows of which tensor of a folder make up each tensor of the GGUF file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastllm.config import ModelConfig
from fastllm.errors import UnsupportedError
from fastllm.models import names
from fastllm.models.bind import BoundModel, RowSegment
from fastllm.models.families import Family
from fastllm.models.layers import Decoder, Norm, walk

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the GGUF file comes from.

    Attributes
    ----------
    name : str
        The tensor of the folder.
    shape : tuple of int
        Of the new tensor.
    rows : int64[n] or None
        Its rows there (elements, for a vector), in order; None: all as they are.
    offset : float
        Added to every value.
    """

    name: str
    shape: tuple[int, ...]
    rows: Rows | None
    offset: float = 0.0


def origins(bound: BoundModel, family: Family, target: Decoder) -> dict[str, Origin]:
    """Return the tensors of the GGUF file in the order in which they are used.

    What is one tensor in the folder stays one, where the family knows it so in GGUF too (falcon's
    and phi3's fused projections).

    Parameters
    ----------
    bound : BoundModel
        The folder.
    family : Family
    target : Decoder
        The same config with the layers as GGUF has them.

    Raises
    ------
    UnsupportedError
        The format has no place for a weight.
    """
    config = bound.decoder.config
    paired = _paired_roles(bound.decoder, target)
    shifted = _shifted_roles(bound.decoder, target)
    found: dict[str, Origin] = {}
    for role in (*bound.matrix_roles, *bound.vector_roles):
        segments = bound.segments(role)
        source = segments[0].tensor
        rows = _rows(segments)
        if role in paired:
            rows = rows[_pairs(len(rows), *paired[role])]
        place = _place(family, role, fused=len(rows) != source.shape[0])
        total = len(rows) if place.cut is None else place.cut.num_rows(config)
        origin = found.setdefault(
            place.stem,
            Origin(
                source.name,
                (total, *source.shape[1:]),
                np.full(total, -1),
                shifted.get(role, 0.0),
            ),
        )
        assert origin.rows is not None
        _put(origin.rows, rows, place, config)
    return {name: _simplified(origin) for name, origin in found.items()}


def _rows(segments: Iterable[RowSegment]) -> Rows:
    runs = [np.arange(s.first_row, s.first_row + s.num_rows) for s in segments]
    return np.concatenate(runs)


def _put(rows: Rows, own: Rows, place: names.Stored, config: ModelConfig) -> None:
    """Write a role's rows to where the fused tensor has them."""
    done = 0
    for first, count in ((0, len(own)),) if place.cut is None else place.cut.rows(config):
        rows[first : first + count] = own[done : done + count]
        done += count


def _simplified(origin: Origin) -> Origin:
    rows = origin.rows
    if rows is not None and np.array_equal(rows, np.arange(origin.shape[0])):
        rows = None
    return Origin(origin.name, origin.shape, rows, origin.offset)


def _place(family: Family, role: str, *, fused: bool) -> names.Stored:
    for place in names.places(family.names.gguf, role):
        if (place.cut is not None) == fused:
            return place
    raise UnsupportedError(f"{role}: GGUF has no tensor for it in the shape that the folder has")


def _paired_roles(source: Decoder, target: Decoder) -> dict[str, tuple[int, int]]:
    """Return the roles of queries and keys whose rotation is spelled in pairs in GGUF only.

    Each with the size of a head and how much of it is rotated.
    """
    found = {}
    for ours, theirs in zip(source.attentions, target.attentions, strict=True):
        if ours.rope_style == theirs.rope_style or ours.rope is None:
            continue
        size = (ours.head_dim, source.ropes[ours.rope].rotary_dim)
        for linear in (ours.q, ours.k):
            found[linear.weight] = size
            if linear.bias is not None:
                found[linear.bias] = size
    return found


def _pairs(num_rows: int, head_dim: int, rotary_dim: int) -> Rows:
    """Return the order of rows in which row i of a head's first half meets row i of its second."""
    order = np.arange(num_rows).reshape(-1, head_dim)
    halves = order[:, :rotary_dim].reshape(len(order), 2, rotary_dim // 2)
    pairs = halves.swapaxes(1, 2).reshape(len(order), rotary_dim)
    return np.concatenate([pairs, order[:, rotary_dim:]], axis=1).reshape(-1)


def _shifted_roles(source: Decoder, target: Decoder) -> dict[str, float]:
    """Return what must be added to norms' weights (gemma stores w - 1 in folders)."""
    return {
        ours.weight: ours.weight_offset - theirs.weight_offset
        for ours, theirs in zip(walk(source, Norm), walk(target, Norm), strict=True)
    }
