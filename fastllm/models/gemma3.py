"""Gemma 3, the text model: five sliding layers to a global one, each kind with its own rope."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fastllm.config import RopeConfig
from fastllm.errors import FormatError
from fastllm.models import config_keys, foreign_keys, gated, names
from fastllm.models.gated import GatedConfig
from fastllm.models.gemma2 import gemma_decoder, gemma_to_gguf, gguf_query_scalar, soft_cap
from fastllm.models.keys import MAX_LAYERS, Keys, shown
from fastllm.models.layers import Decoder
from fastllm.models.rope_keys import MIN_THETA, rope_from_hf

NAMES = names.GEMMA
GGUF_ARCHITECTURE = "gemma3"
# What transformers takes where config.json has no such key: the published multimodal models leave
# most of their text config to these.
DEFAULTS: dict[str, object] = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
NUM_LAYERS_27B = 62
PATTERN = 6


def text_config(config: Mapping[str, object]) -> dict[str, object]:
    """Return the text model's part of a config.json, with transformers' defaults filled in."""
    text = config.get("text_config")
    if text is None:
        return {**DEFAULTS, **config}
    if not isinstance(text, Mapping):
        raise FormatError(f"config.json: text_config is {shown(text)}, expected an object")
    shared = ("bos_token_id", "eos_token_id", "quantization_config", "_name_or_path")
    outer = {key: config[key] for key in shared if key in config}
    # Whether the head is tied is said of the whole model.
    tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    return {**DEFAULTS, **outer, **text, **tied}


def rope_keys_of(keys: Keys, layer_type: str) -> Keys:
    """Return the config as one type of layer sees it: its own rope and no other's.

    ``rope_parameters`` has an entry for each type of layer; ``rope_scaling`` is an older addition
    to the global layers' one, and so is ``rope_theta``.
    """
    parameters = keys.section("rope_parameters") or Keys({}, keys.where)
    for key in parameters.values:
        if key not in ("full_attention", "sliding_attention"):
            parameters.refuse(str(key), built=())
    own = parameters.section(layer_type) or Keys({}, keys.where)
    theta = keys.values["rope_local_base_freq"]
    if layer_type == "full_attention":
        theta = keys.values["rope_theta"]
        scaling = keys.section("rope_scaling") or Keys({}, keys.where)
        if not scaling.has("rope_type"):
            scaling.refuse("type", built=())  # transformers takes it for a plain rotation
        own = own.changed(**scaling.values)
    own.refuse("truncate", built=(True,))  # transformers looks for it beside the entries only
    return keys.changed(
        rope_theta=theta,
        rope_parameters=own.values,
        rope_scaling=None,
        original_max_position_embeddings=None,
    )


def config_from_hf(config: Mapping[str, object]) -> GatedConfig:
    """Read a config.json of ``gemma3_text``, or the text part of ``gemma3``."""
    keys = Keys(text_config(config), "config.json")
    keys.refuse("use_bidirectional_attention", built=(False,))
    bias = keys.flag("attention_bias", default=False)
    read = gated.config_from_hf(
        rope_keys_of(keys, "full_attention"),
        "gemma3",
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        act_keys=("hidden_activation",),
    )
    num_layers = read.num_hidden_layers
    pattern = keys.integer(
        "sliding_window_pattern", "_sliding_window_pattern", default=PATTERN, high=MAX_LAYERS
    )
    window = keys.integer("sliding_window")
    read = replace(
        read,
        qkv_bias=bias,
        o_bias=bias,
        local_rope=rope_from_hf(
            rope_keys_of(keys, "sliding_attention"), read.head_dim, read.max_position_embeddings
        ),
        sliding_window=window,
        sliding_layers=config_keys.sliding_layers_from_hf(
            keys, num_layers, [(i + 1) % pattern != 0 for i in range(num_layers)], window
        ),
        query_pre_attn_scalar=keys.number("query_pre_attn_scalar", low=1e-3),
        final_logit_softcapping=soft_cap(keys, "final_logit_softcapping"),
    )
    if "text_config" in config:  # transformers caps logits in the text model only
        keys.refuse("final_logit_softcapping", built=(0,))
    keys.refuse_unread(foreign_keys.HF)
    return read


def config_from_gguf(metadata: Mapping[str, object], tensor_names: Collection[str]) -> GatedConfig:
    """Read GGUF metadata; without a sliding window every layer is global."""
    keys = Keys(metadata, "GGUF metadata", "gemma3.")
    read = gated.config_from_gguf(keys, tensor_names, "gemma3", hidden_act="gelu_tanh")
    read = replace(
        read,
        query_pre_attn_scalar=gguf_query_scalar(keys, read, NUM_LAYERS_27B),
        final_logit_softcapping=soft_cap(keys, "final_logit_softcapping"),
    )
    local_theta = keys.number("rope.freq_base_swa", default=10000.0, low=MIN_THETA)
    attention_factor = keys.number("rope.scaling.attn_factor", default=1.0, low=1e-3, high=1e3)
    keys.refuse("rope.dimension_count_swa", built=(read.rope.rotary_dim,))
    keys.refuse_unread(foreign_keys.GGUF)
    if read.sliding_window is None:
        return read
    return replace(
        read,
        # Scaling is for the global layers; only the factor of attention is for all.
        local_rope=RopeConfig(
            theta=local_theta,
            rotary_dim=read.rope.rotary_dim,
            attention_factor=attention_factor if attention_factor != 1.0 else None,
        ),
        sliding_layers=config_keys.sliding_layers_from_gguf(keys, read.num_hidden_layers, PATTERN),
    )


def config_to_gguf(config: GatedConfig) -> dict[str, object]:
    """Return GGUF metadata."""
    return gemma_to_gguf(config, GGUF_ARCHITECTURE, NUM_LAYERS_27B)


def decoder(config: GatedConfig, source: str) -> Decoder:
    """Return the layers."""
    return gemma_decoder(config, source, qk_norm=True)
