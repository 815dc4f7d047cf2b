"""Qwen 3: a llama that norms its queries and keys head by head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fastllm.models import foreign_keys, gated, names, qwen2
from fastllm.models.gated import GatedConfig
from fastllm.models.keys import Keys
from fastllm.models.layers import Decoder

NAMES = names.LLAMA
GGUF_ARCHITECTURE = "qwen3"


def config_from_hf(config: Mapping[str, object]) -> GatedConfig:
    """Read a config.json; ``attention_bias`` is for q, k, v and o alike."""
    keys = Keys({"sliding_window": 4096, "head_dim": 128, **config}, "config.json")
    bias = keys.flag("attention_bias", default=False)
    read = replace(gated.config_from_hf(keys, "qwen3"), qkv_bias=bias, o_bias=bias)
    read = qwen2.with_sliding_layers(keys, read)
    keys.refuse_unread(foreign_keys.HF)
    return read


def config_from_gguf(metadata: Mapping[str, object], tensor_names: Collection[str]) -> GatedConfig:
    """Read GGUF metadata."""
    keys = Keys(metadata, "GGUF metadata", "qwen3.")
    read = gated.config_from_gguf(keys, tensor_names, "qwen3")
    keys.refuse_unread(foreign_keys.GGUF)
    return read


def config_to_gguf(config: GatedConfig) -> dict[str, object]:
    """Return GGUF metadata."""
    return gated.config_to_gguf(config, GGUF_ARCHITECTURE)


def decoder(config: GatedConfig, source: str) -> Decoder:  # noqa: ARG001  (alike in both)
    """Return the layers."""
    return gated.gated_decoder(config, qk_norm=True)
