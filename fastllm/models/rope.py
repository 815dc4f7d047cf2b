"""Rope variants to one table of inverse frequencies.

Formulas: RoPE (arXiv 2104.09864), linear scaling (arXiv 2306.15595), YaRN (arXiv 2309.00071),
LongRoPE (arXiv 2402.13753), Llama 3.1's smoothing as transformers' ``modeling_rope_utils`` reads
its config.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fastllm.config import RopeConfig
from fastllm.errors import UnsupportedError
from fastllm.models.keys import MAX_SIZE

SCALINGS = ("none", "linear", "llama3", "yarn", "longrope")


def short_context(ropes: Iterable[RopeConfig]) -> int:
    """Return the length up to which a sequence takes LongRoPE's short factors.

    Returns
    -------
    int
        Tokens; 0 where no rotation depends on the length of the sequence.

    Raises
    ------
    UnsupportedError
        Two rotations of one model that change at different lengths.
    """
    lengths = {r.original_max_position_embeddings for r in ropes if r.scaling == "longrope"}
    if len(lengths) > 1:
        raise UnsupportedError(
            f"rope scaling longrope changes at {' and '.join(map(str, sorted(lengths)))} tokens in "
            "one model, which is not built"
        )
    return lengths.pop() if lengths else 0


def max_positions(rope: RopeConfig, stated: int) -> int:
    """Return how many positions a model may have.

    What the file states, but for YaRN at least what its scaling reaches: people switch it on by
    adding the section, and leave ``max_position_embeddings`` as it was trained.

    Parameters
    ----------
    rope : RopeConfig
    stated : int
        ``max_position_embeddings``.
    """
    if rope.scaling != "yarn":
        return stated
    return max(stated, int(min(rope.original_max_position_embeddings * rope.factor, MAX_SIZE)))


def inv_freq(rope: RopeConfig, num_tokens: int) -> NDArray[np.float64]:
    """Return the angle that each pair of dimensions turns per position.

    Parameters
    ----------
    rope : RopeConfig
        The variant and its parameters.
    num_tokens : int
        Length of the sequence. Only LongRoPE looks at it: beyond
        ``original_max_position_embeddings`` it takes the long factors, for all positions.

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
    frequencies: NDArray[np.float64] = rope.theta**-exponents
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
        is_long = num_tokens > rope.original_max_position_embeddings
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

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, rope.rotary_dim - 1.0)
    width = high - low if high != low else 0.001  # the same guard as transformers
    ramp: NDArray[np.float64] = np.clip((np.arange(rope.rotary_dim // 2) - low) / width, 0.0, 1.0)
    return frequencies * ((1 - ramp) + ramp / rope.factor)


def attention_factor(rope: RopeConfig, num_tokens: int) -> float:  # noqa: ARG001  (room's shape)
    """Return what cosines and sines are multiplied with.

    It is the file's own number where it gives one, else what the scaling's paper recommends.

    Parameters
    ----------
    rope : RopeConfig
        The variant and its parameters.
    num_tokens : int
        Length of the sequence (no variant built depends on it: LongRoPE has one factor for both).
    """
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1.0:
        return 1.0
    if rope.scaling == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
        return _mscale(rope.factor, 1.0)
    if rope.scaling == "longrope":
        original = rope.original_max_position_embeddings
        return math.sqrt(1 + math.log(rope.factor) / math.log(original))
    return 1.0


def tables(rope: RopeConfig) -> dict[str, NDArray[np.float32]]:
    """Return the tables of divisors that a GGUF file holds as tensors, by their names.

    LongRoPE's two, and llama3's smoothing, which has no keys there. A value is float32[rotary_dim
    / 2].
    """
    if rope.scaling == "longrope":
        return {
            "rope_factors_short.weight": np.array(rope.short_factor, np.float32),
            "rope_factors_long.weight": np.array(rope.long_factor, np.float32),
        }
    if rope.scaling != "llama3":
        return {}
    plain = inv_freq(RopeConfig(theta=rope.theta, rotary_dim=rope.rotary_dim), 1)
    return {"rope_freqs.weight": (plain / inv_freq(rope, 1)).astype(np.float32)}


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0


def cos_sin(
    rope: RopeConfig, num_tokens: int, positions: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosines and sines of all angles, the attention factor included.

    Angles are taken in float64, so that far positions lose nothing.

    Parameters
    ----------
    rope : RopeConfig
        The variant and its parameters.
    num_tokens : int
        Length of the sequence.
    positions : integer[n]
        Places in the sequence, from 0.

    Returns
    -------
    cos, sin : float32[n, rotary_dim / 2]
    """
    angles = np.asarray(positions, dtype=np.float64)[:, None] * inv_freq(rope, num_tokens)[None, :]
    factor = attention_factor(rope, num_tokens)
    return (
        (np.cos(angles) * factor).astype(np.float32),
        (np.sin(angles) * factor).astype(np.float32),
    )
