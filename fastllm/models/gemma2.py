"""Gemma 2: every other layer slides, norms on both sides, soft caps, scaled embeddings."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from fastllm.models import config_keys, foreign_keys, gated, names
from fastllm.models.gated import GatedConfig
from fastllm.models.keys import Keys
from fastllm.models.layers import Decoder

NAMES = names.GEMMA
GGUF_ARCHITECTURE = "gemma2"
# What transformers takes where config.json has no such key.
DEFAULTS = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
# llama.cpp tells the 27B models, whose scores are scaled by another number, by their depth.
NUM_LAYERS_27B = 46


def soft_cap(keys: Keys, name: str, default: float | None = None) -> float | None:
    """Return a soft cap, None if null or absent (and no default) or 0."""
    if not keys.has(name):
        return default
    return keys.number(name, high=1e9) or None


def config_from_hf(config: Mapping[str, object]) -> GatedConfig:
    """Read a config.json."""
    keys = Keys({**DEFAULTS, **config}, "config.json")
    keys.refuse("use_bidirectional_attention", built=(False,))
    bias = keys.flag("attention_bias", default=False)
    read = gated.config_from_hf(
        keys,
        "gemma2",
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        act_keys=("hidden_activation",),
    )
    num_layers = read.num_hidden_layers
    window = keys.integer("sliding_window")
    layers = config_keys.sliding_layers_from_hf(
        keys, num_layers, [i % 2 == 0 for i in range(num_layers)], window
    )
    read = replace(
        read,
        qkv_bias=bias,
        o_bias=bias,
        sliding_window=window,
        sliding_layers=layers,
        query_pre_attn_scalar=keys.number("query_pre_attn_scalar", low=1e-3),
        attn_logit_softcapping=soft_cap(keys, "attn_logit_softcapping"),
        final_logit_softcapping=soft_cap(keys, "final_logit_softcapping"),
    )
    keys.refuse_unread(foreign_keys.HF)
    return read


def gguf_query_scalar(keys: Keys, read: GatedConfig, num_layers_27b: int) -> float:
    """Return query_pre_attn_scalar of a GGUF file.

    The files do not say it. As in llama.cpp it is the size of a head, but for the 27B models
    hidden_size / num_attention_heads; ``attention.scale`` (the factor itself) goes before both.
    """
    if keys.number("attention.scale", default=0.0):
        return read.query_pre_attn_scalar
    if read.num_hidden_layers == num_layers_27b:
        return float(read.hidden_size // read.num_attention_heads)
    return float(read.head_dim)


def config_from_gguf(metadata: Mapping[str, object], tensor_names: Collection[str]) -> GatedConfig:
    """Read GGUF metadata."""
    keys = Keys(metadata, "GGUF metadata", "gemma2.")
    read = gated.config_from_gguf(keys, tensor_names, "gemma2", hidden_act="gelu_tanh")
    keys.refuse("rope.freq_base_swa", built=(read.rope.theta,))
    read = replace(
        read,
        sliding_window=read.sliding_window or 4096,
        sliding_layers=config_keys.sliding_layers_from_gguf(keys, read.num_hidden_layers, 2),
        query_pre_attn_scalar=gguf_query_scalar(keys, read, NUM_LAYERS_27B),
        attn_logit_softcapping=soft_cap(keys, "attn_logit_softcapping", 50.0),
        final_logit_softcapping=soft_cap(keys, "final_logit_softcapping", 30.0),
    )
    keys.refuse_unread(foreign_keys.GGUF)
    return read


def gemma_to_gguf(config: GatedConfig, architecture: str, num_layers_27b: int) -> dict[str, object]:
    """Return GGUF metadata of gemma 2 and 3; the scale only where no reader would guess it."""
    keys = gated.config_to_gguf(config, architecture, hidden_act="gelu_tanh")
    guessed = config.head_dim
    if config.num_hidden_layers == num_layers_27b:
        guessed = config.hidden_size // config.num_attention_heads
    if config.query_pre_attn_scalar != guessed:
        keys[f"{architecture}.attention.scale"] = config.query_pre_attn_scalar**-0.5
    return keys


def config_to_gguf(config: GatedConfig) -> dict[str, object]:
    """Return GGUF metadata; a cap of 0 is none, and no cap said is this family's own."""
    keys = gemma_to_gguf(config, GGUF_ARCHITECTURE, NUM_LAYERS_27B)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        keys.setdefault(f"{GGUF_ARCHITECTURE}.{name}", 0.0)
    return keys


def gemma_decoder(config: GatedConfig, source: str, *, qk_norm: bool) -> Decoder:
    """Return the layers of gemma 2 and 3.

    Hugging Face checkpoints store the weights of norms minus one, GGUF files whole. Embeddings are
    scaled by sqrt(hidden_size) in float32, which is what transformers rounds it to in a float32
    model.
    """
    return gated.gated_decoder(
        config,
        weight_offset=0.0 if source == "gguf" else 1.0,
        qk_norm=qk_norm,
        sandwich_norms=True,
        embed_scale=float(np.float32(math.sqrt(config.hidden_size))),
    )


def decoder(config: GatedConfig, source: str) -> Decoder:
    """Return the layers."""
    return gemma_decoder(config, source, qk_norm=False)
