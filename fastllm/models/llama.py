"""Llama 1 to 3.x, SmolLM, and everything else built as a plain llama."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fastllm.models import config_keys, foreign_keys, gated, names
from fastllm.models.gated import GatedConfig
from fastllm.models.keys import Keys
from fastllm.models.layers import Decoder

NAMES = names.LLAMA
GGUF_ARCHITECTURE = "llama"


def config_from_hf(config: Mapping[str, object]) -> GatedConfig:
    """Read a config.json; ``attention_bias`` is for q, k, v and o alike."""
    keys = Keys(config, "config.json")
    bias = keys.flag("attention_bias", default=False)
    read = replace(
        gated.config_from_hf(keys, "llama"),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=keys.flag("mlp_bias", default=False),
    )
    config_keys.check_layer_types(keys, "full_attention")
    keys.refuse_unread(foreign_keys.HF)
    return read


def config_from_gguf(metadata: Mapping[str, object], tensor_names: Collection[str]) -> GatedConfig:
    """Read GGUF metadata; mistral's files also call themselves "llama"."""
    keys = Keys(metadata, "GGUF metadata", "llama.")
    read = gated.config_from_gguf(keys, tensor_names, "llama")
    keys.refuse_unread(foreign_keys.GGUF)
    return read


def config_to_gguf(config: GatedConfig) -> dict[str, object]:
    """Return GGUF metadata."""
    return gated.config_to_gguf(config, GGUF_ARCHITECTURE)


def decoder(config: GatedConfig, source: str) -> Decoder:
    """Return the layers; GGUF files hold the rows of q and k in the order of rotated pairs."""
    return gated.gated_decoder(config, rope_style="pairs" if source == "gguf" else "half")
