"""Mistral: a llama whose layers may all slide. Its GGUF files are of architecture "llama"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastllm.models import config_keys, foreign_keys, gated, llama
from fastllm.models.gated import GatedConfig
from fastllm.models.keys import Keys

NAMES = llama.NAMES
GGUF_ARCHITECTURE = "llama"
config_from_gguf = llama.config_from_gguf
config_to_gguf = llama.config_to_gguf
decoder = llama.decoder
# What transformers takes where config.json has no such key.
DEFAULTS = {"sliding_window": 4096, "num_key_value_heads": 8}


def config_from_hf(config: Mapping[str, object]) -> GatedConfig:
    """Read a config.json; ``sliding_window: null`` means none, no such key transformers' 4096."""
    keys = Keys({**DEFAULTS, **config}, "config.json")
    window = keys.integer("sliding_window") if keys.has("sliding_window") else None
    read = gated.config_from_hf(keys, "mistral")
    layers = config_keys.sliding_layers_from_hf(
        keys, read.num_hidden_layers, [window is not None] * read.num_hidden_layers, window
    )
    keys.refuse_unread(foreign_keys.HF)
    return replace(read, sliding_window=window, sliding_layers=layers)
