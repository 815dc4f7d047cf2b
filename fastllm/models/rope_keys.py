"""Rope parameters as files spell them, to `RopeConfig`: every key is read, or refused by name."""

from __future__ import annotations

from dataclasses import replace

from fastllm.config import RopeConfig
from fastllm.errors import UnsupportedError
from fastllm.models.keys import MAX_SIZE, Keys
from fastllm.models.rope import SCALINGS, attention_factor

# "su" is the name LongRoPE had in the first phi-3 configs.
HF_SCALINGS = {"default": "none", "su": "longrope"} | {name: name for name in SCALINGS}

# Keys of a rope section that transformers reads for one scaling or another. Those of another
# scaling than the section's own it leaves alone, and so do we.
HF_KEYS = frozenset(
    (
        "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "attention_factor",
        "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor",
    )
)  # fmt: skip
# Keys of other readers, with the values that change nothing.
HF_NEUTRAL: dict[str, tuple[object, ...]] = {
    "finetuned": (True, False),
    "attn_factor": (1,),
    "extrapolation_factor": (1,),
}

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
    keys: Keys,
    head_dim: int,
    max_positions: int,
    *,
    partial: bool = False,
) -> RopeConfig:
    """Read rope from config.json: ``rope_theta`` with ``rope_scaling``, or ``rope_parameters``.

    Parameters
    ----------
    keys : Keys
        The (text) config.
    head_dim, max_positions : int
        Size of a head; ``max_position_embeddings``.
    partial : bool
        Whether this family reads ``partial_rotary_factor``; else only 1 is taken.

    Raises
    ------
    FormatError
        A value of the wrong type or range, or missing.
    UnsupportedError
        A scaling or a key that is not built, named.
    """
    # As in transformers the older name goes first where both are there.
    sections = [keys.section("rope_scaling"), keys.section("rope_parameters")]
    params = next((found for found in sections if found and found.values), Keys({}, keys.where))
    name = params.text("rope_type", "type", default="default")
    if name not in HF_SCALINGS:
        raise UnsupportedError(
            f"{params.where}: rope_type is {name!r}, which is not built; "
            f"built: {', '.join(sorted(HF_SCALINGS))}"
        )
    for key in params.values:
        if key not in HF_KEYS:
            params.refuse(str(key), built=HF_NEUTRAL.get(str(key), ()))
    if not partial:
        for where in (keys, params):
            where.refuse("partial_rotary_factor", built=(1,))
    theta = keys.number("rope_theta", default=10000.0, low=MIN_THETA)
    theta = params.number("rope_theta", default=theta, low=MIN_THETA)
    fraction = keys.number("partial_rotary_factor", default=1.0, high=1.0)
    fraction = params.number("partial_rotary_factor", default=fraction, high=1.0)
    dim = rotary_dim(keys, head_dim, fraction)
    rope = RopeConfig(theta=theta, rotary_dim=dim, scaling=HF_SCALINGS[name])
    return _scaled(rope, keys, params, max_positions)


def _scaled(rope: RopeConfig, keys: Keys, params: Keys, max_positions: int) -> RopeConfig:
    """Return `rope` with what its scaling needs from config.json."""
    if rope.scaling == "none":
        return rope
    if rope.scaling == "linear":
        return replace(rope, factor=params.number("factor", low=MIN_FACTOR))
    original = params.integer("original_max_position_embeddings", default=max_positions, low=2)
    # Where it stands beside the section, it goes first.
    original = keys.integer("original_max_position_embeddings", default=original, low=2)
    rope = replace(rope, original_max_position_embeddings=original)
    if rope.scaling == "llama3":
        low = params.number("low_freq_factor", default=1.0, low=MIN_FACTOR)
        high = params.number("high_freq_factor", default=4.0, low=MIN_FACTOR)
        if high <= low:
            raise params.error("high_freq_factor", high, f"more than low_freq_factor, {low:g}")
        factor = params.number("factor", low=MIN_FACTOR)
        return replace(rope, factor=factor, low_freq_factor=low, high_freq_factor=high)
    rope = replace(
        rope, factor=params.number("factor", default=max_positions / original, low=MIN_FACTOR)
    )
    if params.has("attention_factor"):
        own = params.number("attention_factor", low=MIN_FACTOR, high=1e3)
        rope = replace(rope, attention_factor=own)
    if rope.scaling == "longrope":
        short, long = (
            params.numbers(key, length=rope.rotary_dim // 2, low=MIN_FACTOR, high=1e6)
            for key in ("short_factor", "long_factor")
        )
        return replace(rope, short_factor=short, long_factor=long)
    return replace(
        rope,
        beta_fast=params.number("beta_fast", default=32.0, low=MIN_FACTOR),
        beta_slow=params.number("beta_slow", default=1.0, low=MIN_FACTOR),
        truncate=params.flag("truncate", default=True),
        mscale=params.number("mscale", default=0.0, high=1e3),
        mscale_all_dim=params.number("mscale_all_dim", default=0.0, high=1e3),
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
    keys.refuse("rope.scaling.alpha", built=(0,))
    # Zero is llama.cpp's "not set".
    factor = keys.number("rope.scaling.factor", "rope.scale_linear", default=1.0) or 1.0
    if factor < MIN_FACTOR:
        raise keys.error("rope scaling factor", factor, f"a number from {MIN_FACTOR:g}")
    theta = keys.number("rope.freq_base", default=10000.0, low=MIN_THETA)
    rope = RopeConfig(theta=theta, rotary_dim=rotary_dim(keys, dim))
    if name == "linear" and factor != 1.0:
        rope = replace(rope, scaling="linear", factor=factor)
    if name == "longrope":
        return longrope_from_gguf(keys, rope, max_positions)
    if name == "yarn":
        rope = _yarn_from_gguf(keys, replace(rope, scaling="yarn", factor=factor), max_positions)
    if keys.has("rope.scaling.attn_factor"):
        # It multiplies what the scaling asks for itself.
        own = keys.number("rope.scaling.attn_factor", low=MIN_FACTOR, high=1e3)
        rope = replace(rope, attention_factor=own * attention_factor(rope, max_positions))
    return rope


def _yarn_from_gguf(keys: Keys, rope: RopeConfig, max_positions: int) -> RopeConfig:
    keys.refuse("rope.scaling.yarn_ext_factor", built=(1, -1))
    # It is mscale_all_dim; mscale is taken as 1, as llama.cpp does for the families that write it.
    log_multiplier = keys.number("rope.scaling.yarn_log_multiplier", default=0.0, high=1e3)
    rope = replace(
        rope,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", default=32.0, low=MIN_FACTOR),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", default=1.0, low=MIN_FACTOR),
        mscale=1.0 if log_multiplier else 0.0,
        mscale_all_dim=log_multiplier,
        original_max_position_embeddings=original_context(keys, max_positions),
    )
    if keys.has("rope.scaling.yarn_attn_factor"):
        # Converters store config.json's attention_factor here: all of it, not a multiplier.
        own = keys.number("rope.scaling.yarn_attn_factor", low=MIN_FACTOR, high=1e3)
        rope = replace(rope, attention_factor=own)
    return rope


def longrope_from_gguf(keys: Keys, rope: RopeConfig, max_positions: int) -> RopeConfig:
    """Return `rope` as LongRoPE; its two tables are tensors, which `bind` reads."""
    original = original_context(keys, max_positions)
    own = None
    if keys.has("rope.scaling.attn_factor"):
        own = keys.number("rope.scaling.attn_factor", low=MIN_FACTOR, high=1e3)
    return replace(
        rope,
        scaling="longrope",
        factor=max_positions / original,
        attention_factor=own,
        original_max_position_embeddings=original,
    )


def rope_to_gguf(rope: RopeConfig) -> dict[str, object]:
    """Return the keys of a rotation that `rope_from_gguf` reads, without their prefix.

    What has no key lies in tensors (`rope.tables`), or comes back otherwise, which whoever writes a
    file checks.
    """
    keys: dict[str, object] = {
        "rope.dimension_count": rope.rotary_dim,
        "rope.freq_base": rope.theta,
    }
    if rope.scaling in ("none", "llama3"):
        return keys
    keys["rope.scaling.type"] = rope.scaling
    if rope.scaling == "linear":
        return {**keys, "rope.scaling.factor": rope.factor}
    keys["rope.scaling.original_context_length"] = rope.original_max_position_embeddings
    factor = attention_factor(rope, rope.original_max_position_embeddings)
    if rope.scaling == "longrope":
        return {**keys, "rope.scaling.attn_factor": factor}
    keys["rope.scaling.factor"] = rope.factor
    keys["rope.scaling.yarn_beta_fast"] = rope.beta_fast
    keys["rope.scaling.yarn_beta_slow"] = rope.beta_slow
    usual = attention_factor(RopeConfig(scaling="yarn", factor=rope.factor), 1)
    if factor != usual:
        keys["rope.scaling.attn_factor"] = factor / usual  # readers multiply with what is usual
    return keys


def original_context(keys: Keys, max_positions: int) -> int:
    """Return the context a GGUF model was trained with before its rope was scaled."""
    return keys.integer(
        "rope.scaling.original_context_length", default=max_positions, low=2, high=MAX_SIZE
    )
