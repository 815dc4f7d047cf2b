"""Rope variants to one table of inverse frequencies.

Formulas: RoPE (arXiv 2104.09864), linear scaling (arXiv 2306.15595), YaRN (arXiv 2309.00071),
LongRoPE (arXiv 2402.13753), Llama 3.1's smoothing as transformers' ``modeling_rope_utils`` reads
its config.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastllm.config import RopeConfig
from fastllm.errors import UnsupportedError

SCALINGS = ("none", "linear", "llama3", "yarn", "longrope")


def inv_freq(rope: RopeConfig, n_ctx: int) -> NDArray[np.float64]:
    """Return the angle that each pair of dimensions turns per position.

    Parameters
    ----------
    rope : RopeConfig
        The variant and its parameters.
    n_ctx : int
        Tokens that the context may hold. Only LongRoPE looks at it: beyond
        ``original_max_position_embeddings`` it takes the long factors.

    Returns
    -------
    float64[rotary_dim / 2]
        Radians per position.

    Raises
    ------
    UnsupportedError
        The scaling is of a kind that is not built.
    """
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float64) / rope.rotary_dim
    frequencies = rope.theta**-exponents
    if rope.freq_factors:
        frequencies = frequencies / np.asarray(rope.freq_factors, dtype=np.float64)
    if rope.scaling == "none":
        return frequencies
    if rope.scaling == "linear":
        return frequencies / rope.factor
    if rope.scaling == "llama3":
        return _llama3(rope, frequencies)
    if rope.scaling == "yarn":
        return _yarn(rope, frequencies)
    if rope.scaling == "longrope":
        is_long = n_ctx > rope.original_max_position_embeddings
        factors = rope.long_factor if is_long else rope.short_factor
        return frequencies / np.asarray(factors, dtype=np.float64)
    raise UnsupportedError(
        f"rope scaling {rope.scaling!r} is not built; built: {', '.join(SCALINGS)}"
    )


def _llama3(rope: RopeConfig, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep short waves, stretch long ones by `factor`, and blend between the two limits."""
    wavelengths = 2 * math.pi / frequencies
    turns = rope.original_max_position_embeddings / wavelengths
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return frequencies * (blend + (1 - blend) / rope.factor)


def _yarn(rope: RopeConfig, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep dimensions that turn often within the trained context, stretch those that do not."""

    def dimension(rotations: float) -> float:
        """Return which pair turns `rotations` times within the trained context."""
        context = rope.original_max_position_embeddings
        return (
            rope.rotary_dim
            * math.log(context / (rotations * 2 * math.pi))
            / (2 * math.log(rope.theta))
        )

    low = max(math.floor(dimension(rope.beta_fast)), 0)
    high = min(math.ceil(dimension(rope.beta_slow)), rope.rotary_dim - 1)
    width = high - low if high != low else 0.001  # the same guard as transformers
    ramp = np.clip((np.arange(rope.rotary_dim // 2) - low) / width, 0.0, 1.0)
    return frequencies * ((1 - ramp) + ramp / rope.factor)


def attention_factor(rope: RopeConfig, n_ctx: int) -> float:  # noqa: ARG001  (the room's one shape)
    """Return what cosines and sines are multiplied with.

    It is the file's own number where it gives one, else what the scaling's paper recommends.

    Parameters
    ----------
    rope : RopeConfig
        The variant and its parameters.
    n_ctx : int
        Tokens that the context may hold (no variant built depends on it).
    """
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1.0:
        return 1.0
    if rope.scaling == "yarn":
        return 0.1 * math.log(rope.factor) + 1.0
    if rope.scaling == "longrope":
        original = rope.original_max_position_embeddings
        return math.sqrt(1 + math.log(rope.factor) / math.log(original))
    return 1.0


def cos_sin(
    rope: RopeConfig, n_ctx: int, positions: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosines and sines of all angles, the attention factor included.

    Angles are taken in float64, so that far positions lose nothing.

    Parameters
    ----------
    rope : RopeConfig
        The variant and its parameters.
    n_ctx : int
        Tokens that the context may hold.
    positions : integer[n]
        Places in the sequence, from 0.

    Returns
    -------
    cos, sin : float32[n, rotary_dim / 2]
    """
    angles = np.asarray(positions, dtype=np.float64)[:, None] * inv_freq(rope, n_ctx)[None, :]
    factor = attention_factor(rope, n_ctx)
    return (
        (np.cos(angles) * factor).astype(np.float32),
        (np.sin(angles) * factor).astype(np.float32),
    )
