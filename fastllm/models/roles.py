"""Every weight a decoder asks for, with its shape."""

from __future__ import annotations

from fastllm.models.layers import Decoder, Linear, Norm, Table, walk


def matrices(decoder: Decoder) -> dict[str, tuple[int, int]]:
    """Return role -> (rows, columns) of every matrix of a decoder.

    A tied head is the embedding's role and appears once.
    """
    return {
        part.weight: (part.rows, part.columns)
        for part in walk(decoder)
        if isinstance(part, (Linear, Table))
    }


def multiplied(decoder: Decoder) -> tuple[str, ...]:
    """Return the roles of the matrices that are multiplied with, each once.

    The others are looked up row by row; a tied embedding is both.
    """
    return tuple(dict.fromkeys(linear.weight for linear in walk(decoder, Linear)))


def vectors(decoder: Decoder) -> dict[str, int]:
    """Return role -> length of every norm weight and bias of a decoder."""
    lengths: dict[str, int] = {}
    for norm in walk(decoder, Norm):
        lengths[norm.weight] = norm.size
        if norm.bias is not None:
            lengths[norm.bias] = norm.size
    for linear in walk(decoder, Linear):
        if linear.bias is not None:
            lengths[linear.bias] = linear.rows
    return lengths
