"""Qwen 2 and 2.5: a llama with biases on q, k and v, and optionally sliding upper layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fastllm.models import config_keys, foreign_keys, gated, names
from fastllm.models.gated import GatedConfig
from fastllm.models.keys import MAX_LAYERS, Keys
from fastllm.models.layers import Decoder

NAMES = names.LLAMA
GGUF_ARCHITECTURE = "qwen2"


def with_sliding_layers(keys: Keys, read: GatedConfig) -> GatedConfig:
    """Return `read` with the layers that slide, as ``use_sliding_window`` and its keys say."""
    if not keys.flag("use_sliding_window", default=False) or not keys.has("sliding_window"):
        config_keys.check_layer_types(keys, "full_attention")
        return read
    window = keys.integer("sliding_window")
    lowest = keys.integer("max_window_layers", default=28, low=0, high=MAX_LAYERS)
    num_layers = read.num_hidden_layers
    layers = config_keys.sliding_layers_from_hf(
        keys, num_layers, [i >= lowest for i in range(num_layers)], window
    )
    return replace(read, sliding_window=window, sliding_layers=layers)


def config_from_hf(config: Mapping[str, object]) -> GatedConfig:
    """Read a config.json."""
    keys = Keys({"sliding_window": 4096, **config}, "config.json")
    read = replace(gated.config_from_hf(keys, "qwen2"), qkv_bias=True)
    read = with_sliding_layers(keys, read)
    keys.refuse_unread(foreign_keys.HF)
    return read


def config_from_gguf(metadata: Mapping[str, object], tensor_names: Collection[str]) -> GatedConfig:
    """Read GGUF metadata."""
    keys = Keys(metadata, "GGUF metadata", "qwen2.")
    read = gated.config_from_gguf(keys, tensor_names, "qwen2")
    keys.refuse_unread(foreign_keys.GGUF)
    return replace(read, qkv_bias=True)


def config_to_gguf(config: GatedConfig) -> dict[str, object]:
    """Return GGUF metadata."""
    return gated.config_to_gguf(config, GGUF_ARCHITECTURE)


def decoder(config: GatedConfig, source: str) -> Decoder:  # noqa: ARG001  (alike in both)
    """Return the layers."""
    return gated.gated_decoder(config)
