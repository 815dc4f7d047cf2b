"""A checkpoint with transformers' names to a GGUF file, converted as llama.cpp converts.

Names of tensors come from the `gguf` package, names of keys from its writer: fastllm's own tables
are not asked, so that they are tested.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
DEFAULT_ACT = {
    "gemma2": "gelu_pytorch_tanh",
    "gemma3": "gelu_pytorch_tanh",
    "falcon": "gelu",
    "opt": "relu",
}
# llama.cpp has no opt, and no falcon whose MLP follows attention.
OWN_STEMS = {
    "model.decoder.embed_tokens": "token_embd",
    "model.decoder.embed_positions": "position_embd",
    "model.decoder.project_in": "project_in",
    "model.decoder.project_out": "project_out",
    "model.decoder.final_layer_norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "self_attn_layer_norm": "attn_norm",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
    "final_layer_norm": "ffn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, config: Mapping[str, Any], tensors: Tensors) -> None:
    """Write a float32 GGUF file of the model with this config.json and these tensors."""
    config = config.get("text_config", config)
    arch = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    _write_keys(writer, arch, config)
    for name, values in tensors.items():
        if name.startswith(("vision_tower.", "multi_modal_projector.")):
            continue
        name = name.removeprefix("language_model.")
        writer.add_tensor(_name(arch, config, name), _converted(arch, config, name, values))
    for name, values in _rope_tensors(config).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the numbers of heads and key/value heads, and the size of a head."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    if config["model_type"] == "falcon":
        kv_heads = 1 if config["multi_query"] else heads
        if config["new_decoder_architecture"]:
            kv_heads = config["num_kv_heads"]
    return heads, kv_heads, config.get("head_dim") or config["hidden_size"] // heads


def _write_keys(writer: gguf.GGUFWriter, arch: str, config: Mapping[str, Any]) -> None:
    heads, kv_heads, head_dim = _heads(config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    ffn = config.get("intermediate_size") or config.get("ffn_dim") or config.get("ffn_hidden_size")
    writer.add_feed_forward_length(ffn or 4 * config["hidden_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(config.get("layer_norm_epsilon", 1e-5))
    if head_dim * heads != config["hidden_size"]:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    act = next(
        (
            config[key]
            for key in ("hidden_act", "hidden_activation", "activation", "activation_function")
            if key in config
        ),
        "silu",
    )
    if act != DEFAULT_ACT.get(arch, "silu"):
        writer.add_string("fastllm.hidden_act", act)
    if arch == "opt":
        writer.add_bool("opt.do_layer_norm_before", config["do_layer_norm_before"])
        writer.add_uint32("opt.word_embed_proj_dim", config["word_embed_proj_dim"])
        return
    _write_rope_keys(writer, config, head_dim)
    _write_window_keys(writer, arch, config)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the layers that see everything, in today's spelling."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found = dict(found.get("full_attention", found))
    found.setdefault("rope_type", found.get("type", "default"))
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return found


def _write_rope_keys(writer: gguf.GGUFWriter, config: Mapping[str, Any], head_dim: int) -> None:
    rope = _rope(config)
    writer.add_rope_dimension_count(int(head_dim * config.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "attention_factor" in rope:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if rope["rope_type"] in ("longrope", "su"):
        original = config["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))


def _write_window_keys(writer: gguf.GGUFWriter, arch: str, config: Mapping[str, Any]) -> None:
    num_layers = config["num_hidden_layers"]
    if arch == "qwen2" and not config["use_sliding_window"]:
        return
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if arch == "qwen2":
        first = config["max_window_layers"]
        writer.add_sliding_window_pattern([i >= first for i in range(num_layers)])
    if arch in ("gemma2", "gemma3"):
        writer.add_float32(f"{arch}.attention.scale", config["query_pre_attn_scalar"] ** -0.5)
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"] or 0.0)
        writer.add_final_logit_softcapping(config["final_logit_softcapping"] or 0.0)
    if arch == "gemma3":
        local = (config.get("rope_parameters") or {}).get("sliding_attention", {})
        theta = local.get("rope_theta", config.get("rope_local_base_freq"))
        writer.add_float32("gemma3.rope.freq_base_swa", theta)
        if "layer_types" in config:
            slides = [kind == "sliding_attention" for kind in config["layer_types"]]
            writer.add_sliding_window_pattern(slides)
        else:
            writer.add_sliding_window_pattern(config["sliding_window_pattern"])


def _rope_tensors(config: Mapping[str, Any]) -> Tensors:
    """Return the tables that llama.cpp stores as tensors."""
    rope = _rope(config)
    if rope["rope_type"] in ("longrope", "su"):
        return {
            f"rope_factors_{size}.weight": np.array(rope[f"{size}_factor"], np.float32)
            for size in ("short", "long")
        }
    if rope["rope_type"] != "llama3":
        return {}
    head_dim = _heads(config)[2]
    original = rope["original_max_position_embeddings"]
    factors = []
    for i in range(0, head_dim, 2):
        turns = original * rope["rope_theta"] ** (-i / head_dim) / (2 * math.pi)
        if turns > rope["high_freq_factor"]:
            factors.append(1.0)
        elif turns < rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            blend = turns - rope["low_freq_factor"]
            blend /= rope["high_freq_factor"] - rope["low_freq_factor"]
            factors.append(1 / ((1 - blend) / rope["factor"] + blend))
    return {"rope_freqs.weight": np.array(factors, np.float32)}


def _name(arch: str, config: Mapping[str, Any], name: str) -> str:
    """Return what llama.cpp calls a tensor."""
    stem, suffix = name.rsplit(".", 1)
    layer = re.search(r"(?:layers|h)\.(\d+)\.(.+)", stem)
    if arch != "opt" and not (arch == "falcon" and "post_attention" in name):
        known = gguf.MODEL_ARCH_NAMES.items()
        model_arch = next(key for key, value in known if value == arch)
        table = gguf.get_tensor_name_map(model_arch, config["num_hidden_layers"])
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        return found
    stem = f"blk.{layer[1]}.{OWN_STEMS[layer[2]]}" if layer else OWN_STEMS[stem]
    return f"{stem}.{suffix}"


def _converted(
    arch: str, config: Mapping[str, Any], name: str, values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return a tensor's values as llama.cpp lays them out."""
    heads, kv_heads, head_dim = _heads(config)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return values + 1
    if arch == "llama" and ("q_proj" in name or "k_proj" in name):
        # Halves of a head become pairs: row j of the first half meets row j of the second.
        count = heads if "q_proj" in name else kv_heads
        halves = values.reshape(count, 2, head_dim // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    if arch == "falcon" and "query_key_value" in name:
        groups = values.reshape(kv_heads, heads // kv_heads + 2, head_dim, *values.shape[1:])
        parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    return values
