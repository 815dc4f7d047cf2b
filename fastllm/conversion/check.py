"""Whether a model that was read back is the one that was written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import numpy as np

from fastllm.config import RopeConfig
from fastllm.errors import UnsupportedError
from fastllm.models.layers import Decoder
from fastllm.models.rope import attention_factor, inv_freq

# GGUF keeps numbers in float32.
TOLERANCE = 1e-6
# How rows and norms are spelled differs by design; `tensors` accounts for it. Rotations are
# compared by what they turn, and of the config what the layers do not show.
_SPELLING = ("rope_style", "weight_offset", "config", "ropes")


def require_same(wanted: Decoder, found: Decoder) -> None:
    """Refuse a file that would be read as another model.

    Raises
    ------
    UnsupportedError
        Names the first thing that GGUF metadata could not say.
    """
    for name, ours, theirs in _differences(wanted, found, "model"):
        raise UnsupportedError(
            f"GGUF has no way to say that {name} is {ours}; a reader would take {theirs}"
        )


def _differences(ours: object, theirs: object, name: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(ours, Decoder) and isinstance(theirs, Decoder):
        length, other = (d.config.max_position_embeddings for d in (ours, theirs))
        yield from _differences(length, other, "max_position_embeddings")
        yield from _ropes(ours.ropes, theirs.ropes, length)
    if is_dataclass(ours) and type(ours) is type(theirs):
        for field in fields(ours):
            if field.name not in _SPELLING:
                pair = getattr(ours, field.name), getattr(theirs, field.name)
                yield from _differences(*pair, f"{name}.{field.name}")
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(*pair, f"{name}[{i}]")
    elif isinstance(ours, float) and isinstance(theirs, float):
        if not math.isclose(ours, theirs, rel_tol=TOLERANCE):
            yield name, ours, theirs
    elif ours != theirs:
        yield name, ours, theirs


def _ropes(
    ours: tuple[RopeConfig, ...], theirs: tuple[RopeConfig, ...], length: int
) -> Iterator[tuple[str, object, object]]:
    if len(ours) != len(theirs):
        yield "the number of rotations", len(ours), len(theirs)
        return
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.scaling == "longrope":
            lengths = (a.original_max_position_embeddings, b.original_max_position_embeddings)
            yield from _differences(*lengths, f"ropes[{i}].original_max_position_embeddings")
        for tokens in (1, length):
            factors = attention_factor(a, tokens), attention_factor(b, tokens)
            yield from _differences(*factors, f"ropes[{i}]'s attention factor")
            if a.rotary_dim != b.rotary_dim or not np.allclose(
                inv_freq(a, tokens), inv_freq(b, tokens), rtol=TOLERANCE, atol=0
            ):
                yield f"ropes[{i}]", a, b
                return
