"""Rope parameters as files spell them, to `RopeConfig`."""

from __future__ import annotations

from fastllm.config import RopeConfig
from fastllm.errors import UnsupportedError
from fastllm.models.keys import MAX_SIZE, Keys
from fastllm.models.rope import SCALINGS

# "su" is the name LongRoPE had in the first phi-3 configs.
HF_SCALINGS = {"default": "none", "su": "longrope"} | {name: name for name in SCALINGS}

# YaRN divides by the logarithm of theta; a factor near 0 would turn frequencies into infinity.
MIN_THETA = 1.001
MIN_FACTOR = 1e-3


def rotary_dim(keys: Keys, head_dim: int, fraction: float = 1.0) -> int:
    """Return how many dimensions of a head are rotated: even, and at most `head_dim`."""
    dim = int(head_dim * fraction)
    if dim < 2 or dim % 2:
        raise UnsupportedError(
            f"{keys.where}: {dim} of {head_dim} dimensions of a head are rotated; "
            "only even numbers from 2 are built"
        )
    return dim


def rope_from_hf(
    keys: Keys, head_dim: int, max_positions: int, layer_type: str = "full_attention"
) -> RopeConfig:
    """Read rope from config.json: ``rope_theta`` with ``rope_scaling``, or ``rope_parameters``.

    Parameters
    ----------
    keys : Keys
        The (text) config.
    head_dim, max_positions : int
        Size of a head; ``max_position_embeddings``.
    layer_type : str
        Which entry to take where ``rope_parameters`` has one per type of layer.

    Raises
    ------
    FormatError
        A value of the wrong type or range, or missing.
    UnsupportedError
        A scaling that is not built, named.
    """
    found = keys.section("rope_parameters") or keys.section("rope_scaling")
    params = found or Keys({}, keys.where)
    if params.has(layer_type):
        params = params.section(layer_type) or params
    name = params.text("rope_type", "type", default="default")
    if name not in HF_SCALINGS:
        raise UnsupportedError(
            f"{params.where}: rope_type is {name!r}, which is not built; "
            f"built: {', '.join(sorted(HF_SCALINGS))}"
        )
    scaling = HF_SCALINGS[name]
    theta = keys.number("rope_theta", default=10000.0, low=MIN_THETA)
    theta = params.number("rope_theta", default=theta, low=MIN_THETA)
    fraction = keys.number("partial_rotary_factor", default=1.0, high=1.0)
    fraction = params.number("partial_rotary_factor", default=fraction, high=1.0)
    dim = rotary_dim(keys, head_dim, fraction)
    if scaling == "none":
        return RopeConfig(theta=theta, rotary_dim=dim)
    if scaling == "linear":
        factor = params.number("factor", low=MIN_FACTOR)
        return RopeConfig(theta=theta, rotary_dim=dim, scaling=scaling, factor=factor)

    original = params.integer("original_max_position_embeddings", default=max_positions, low=2)
    original = keys.integer("original_max_position_embeddings", default=original, low=2)
    if scaling == "llama3":
        low = params.number("low_freq_factor", default=1.0, low=MIN_FACTOR)
        high = params.number("high_freq_factor", default=4.0, low=MIN_FACTOR)
        if high <= low:
            raise params.error("high_freq_factor", high, f"more than low_freq_factor, {low:g}")
        return RopeConfig(
            theta=theta,
            rotary_dim=dim,
            scaling=scaling,
            factor=params.number("factor", low=MIN_FACTOR),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=original,
        )
    factor = params.number("factor", default=max_positions / original, low=MIN_FACTOR)
    attention_factor = None
    if params.has("attention_factor"):
        attention_factor = params.number("attention_factor", low=MIN_FACTOR, high=1e3)
    if scaling == "yarn":
        for key in ("mscale", "mscale_all_dim"):
            params.refuse(key, built=(0, 1))
        params.refuse("truncate", built=(True,))
        return RopeConfig(
            theta=theta,
            rotary_dim=dim,
            scaling=scaling,
            factor=factor,
            beta_fast=params.number("beta_fast", default=32.0, low=MIN_FACTOR),
            beta_slow=params.number("beta_slow", default=1.0, low=MIN_FACTOR),
            attention_factor=attention_factor,
            original_max_position_embeddings=original,
        )
    return RopeConfig(
        theta=theta,
        rotary_dim=dim,
        scaling=scaling,
        factor=factor,
        attention_factor=attention_factor,
        original_max_position_embeddings=original,
        short_factor=params.numbers("short_factor", length=dim // 2, low=MIN_FACTOR, high=1e6),
        long_factor=params.numbers("long_factor", length=dim // 2, low=MIN_FACTOR, high=1e6),
    )


def rope_from_gguf(keys: Keys, head_dim: int, max_positions: int) -> RopeConfig:
    """Read rope from ``{architecture}.rope.*``, as llama.cpp reads them.

    Tables that lie in tensors (``rope_freqs``, ``rope_factors_*``) are added by `bind`.

    Raises
    ------
    FormatError, UnsupportedError
        As `rope_from_hf`.
    """
    dim = keys.integer("rope.dimension_count", default=head_dim, high=head_dim)
    name = keys.text("rope.scaling.type", default="linear")
    if name not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedError(
            f"{keys.where}: {keys.prefix}rope.scaling.type is {name!r}, which is not built; "
            "built: none, linear, yarn, longrope"
        )
    # Zero is llama.cpp's "not set".
    factor = keys.number("rope.scaling.factor", "rope.scale_linear", default=1.0) or 1.0
    if factor < MIN_FACTOR:
        raise keys.error("rope scaling factor", factor, f"a number from {MIN_FACTOR:g}")
    theta = keys.number("rope.freq_base", default=10000.0, low=MIN_THETA)
    rope = RopeConfig(theta=theta, rotary_dim=rotary_dim(keys, dim))
    if name == "longrope" or name == "none" or (name == "linear" and factor == 1.0):
        return rope
    if name == "linear":
        return RopeConfig(theta=theta, rotary_dim=dim, scaling="linear", factor=factor)
    keys.refuse("rope.scaling.yarn_ext_factor", built=(1.0, -1.0))
    keys.refuse("rope.scaling.yarn_log_multiplier", built=(0.0,))
    attention_factor = None
    if keys.has("rope.scaling.yarn_attn_factor"):
        attention_factor = keys.number("rope.scaling.yarn_attn_factor", low=MIN_FACTOR, high=1e3)
    return RopeConfig(
        theta=theta,
        rotary_dim=dim,
        scaling="yarn",
        factor=factor,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", default=32.0, low=MIN_FACTOR),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", default=1.0, low=MIN_FACTOR),
        attention_factor=attention_factor,
        original_max_position_embeddings=original_context(keys, max_positions),
    )


def original_context(keys: Keys, max_positions: int) -> int:
    """Return the context a GGUF model was trained with before its rope was scaled."""
    return keys.integer(
        "rope.scaling.original_context_length", default=max_positions, low=2, high=MAX_SIZE
    )
