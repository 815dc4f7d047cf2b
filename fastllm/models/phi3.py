"""Phi 3, 3.5 and 4: a llama with fused projections, partial rotation and LongRoPE."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fastllm.models import config_keys, foreign_keys, gated, names
from fastllm.models.gated import GatedConfig
from fastllm.models.keys import Keys
from fastllm.models.layers import Decoder
from fastllm.models.rope_keys import longrope_from_gguf

GGUF_ARCHITECTURE = "phi3"
LONG_TABLES = ("rope_factors_short.weight", "rope_factors_long.weight")
NAMES = names.Names(
    hf={
        **names.HF_LLAMA,
        **{
            f"layers.{{i}}.self_attn.{part}_proj": (
                names.Stored("{p}layers.{i}.self_attn.qkv_proj", names.qkv(part)),
            )
            for part in "qkv"
        },
        "layers.{i}.mlp.gate_proj": (
            names.Stored("{p}layers.{i}.mlp.gate_up_proj", names.half(0)),
        ),
        "layers.{i}.mlp.up_proj": (names.Stored("{p}layers.{i}.mlp.gate_up_proj", names.half(1)),),
    },
    gguf={
        **names.GGUF_LLAMA,
        "layers.{i}.mlp.gate_proj": (names.Stored("blk.{i}.ffn_up", names.half(0)),),
        "layers.{i}.mlp.up_proj": (names.Stored("blk.{i}.ffn_up", names.half(1)),),
    },
)


def config_from_hf(config: Mapping[str, object]) -> GatedConfig:
    """Read a config.json; as in transformers, this family's scaling "yarn" is LongRoPE."""
    values = {"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, **config}
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.get(key)
        if not isinstance(scaling, Mapping):
            continue
        if "yarn" in (scaling.get("type"), scaling.get("rope_type")):
            values[key] = {**scaling, "rope_type": "longrope"}
    keys = Keys(values, "config.json")
    read = gated.config_from_hf(keys, "phi3", partial_rotation=True)
    slides = keys.has("sliding_window")
    config_keys.check_layer_types(keys, "sliding_attention" if slides else "full_attention")
    keys.refuse_unread(foreign_keys.HF)
    if not slides:
        return read
    return replace(
        read,
        sliding_window=keys.integer("sliding_window"),
        sliding_layers=(True,) * read.num_hidden_layers,
    )


def config_from_gguf(metadata: Mapping[str, object], tensor_names: Collection[str]) -> GatedConfig:
    """Read GGUF metadata; LongRoPE is told by its two tables, which `bind` fills in.

    A sliding window is honoured (it is what the checkpoint was trained with); llama.cpp reads the
    key and leaves it unused.
    """
    keys = Keys(metadata, "GGUF metadata", "phi3.")
    read = gated.config_from_gguf(keys, tensor_names, "phi3")
    keys.refuse_unread(foreign_keys.GGUF)
    if not any(name in tensor_names for name in LONG_TABLES):
        return read
    rope = longrope_from_gguf(keys, read.rope, read.max_position_embeddings)
    return replace(read, rope=rope)


def config_to_gguf(config: GatedConfig) -> dict[str, object]:
    """Return GGUF metadata."""
    return gated.config_to_gguf(config, GGUF_ARCHITECTURE)


def decoder(config: GatedConfig, source: str) -> Decoder:  # noqa: ARG001  (alike in both)
    """Return the layers."""
    return gated.gated_decoder(config)
