"""Changes of config.json, family by family: what transformers reads, and what others read.

`BASES` are tiny models of each family; `changes` lists what is tried on the config.json that
transformers writes for one.
"""

from __future__ import annotations

from typing import Any

from tests.golden import variants as v

Change = dict[str, Any]
DROP = "<drop>"  # as a value: the key is taken out

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
BASES: dict[str, dict[str, Any]] = {
    "llama": v.LLAMA,
    "mistral": v.MISTRAL,
    "qwen2": {**v.QWEN2, "use_sliding_window": True},
    "qwen3": v.QWEN3,
    "gemma2": v.GEMMA2,
    "gemma3": v.GEMMA3,
    "gemma3-multimodal": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {key: value for key, value in v.GEMMA3.items() if key != "architectures"},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "boi_token_index": 100,
        "eoi_token_index": 101,
        "image_token_index": 102,
    },
    "phi3": v.PHI3,
    "falcon": v.FALCON,
    "opt": v.OPT,
}

# Tried on every family, whether it knows the key or not.
COMMON: tuple[Change, ...] = (
    *({"hidden_act": act} for act in ("gelu", "relu", "gelu_new", "quick_gelu")),
    {"hidden_activation": "silu"},
    {"activation": "relu"},
    {"activation_function": "gelu"},
    {"rms_norm_eps": 0.1},
    {"rms_norm_eps": DROP},
    {"layer_norm_epsilon": 0.1},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"bias": True},
    {"enable_bias": False},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": DROP},
    {"head_dim": 8},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": None},
    {"query_pre_attn_scalar": 5},
    {"attn_logit_softcapping": 1.0},
    {"attn_logit_softcapping": DROP},
    {"final_logit_softcapping": 1.0},
    {"final_logit_softcapping": DROP},
    {"attention_multiplier": 0.5},
    {"residual_multiplier": 0.5},
    {"embedding_multiplier": 2.0},
    {"logits_scaling": 2.0},
    {"logit_scale": 0.5},
    {"clip_qkv": 0.1},
    {"is_causal": False},
    {"use_bidirectional_attention": True},
    {"attention_chunk_size": 4},
    {"alibi": True},
    {"num_experts": 4},
    {"num_local_experts": 4},
    {"use_qk_norm": True},
    {"pretraining_tp": 2},
    # windows
    {"sliding_window": 5},
    {"sliding_window": None},
    {"use_sliding_window": False},
    {"max_window_layers": 0},
    {"sliding_window_pattern": 2},
    {"layer_types": DROP},
    {"layer_types": DROP, "sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
    {"layer_types": "full"},
    {"layer_types": "mixed", "sliding_window": 5, "use_sliding_window": True},
    {"layer_types": "mixed", "sliding_window": 5, "use_sliding_window": False},
    # rotations
    {"partial_rotary_factor": 0.5},
    {"rope_theta": 77.0},
    {"rope_theta": 77.0, "rope_parameters": DROP},
    {"rope_local_base_freq": 50.0, "rope_parameters": DROP},
    {"rope_theta": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    {"rope_parameters": DROP, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    {"rope_parameters": DROP, "rope_scaling": {"type": "linear", "factor": 3.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0}},
    {
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5,
        }
    },
    {
        "rope_parameters": {
            "rope_type": "proportional", "rope_theta": 300.0, "partial_rotary_factor": 0.5,
        }
    },
    *(
        {
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 90.0, "factor": 4.0,
                "original_max_position_embeddings": 16, **more,
            }
        }
        for more in (
            {}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 0.7, "mscale_all_dim": 1.3},
            {"mscale": 2.0}, {"attention_factor": 1.3}, {"truncate": False},
            {"beta_fast": 8.0, "beta_slow": 2.0},
        )
    ),
    {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 90.0, "factor": 4.0},
        "original_max_position_embeddings": 20,
    },
    {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 90.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        }
    },
    *(
        {
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 90.0, "short_factor": v.SHORT,
                "long_factor": v.LONG, "original_max_position_embeddings": original, **more,
            },
            "original_max_position_embeddings": original,
        }
        for original, more in (
            (16, {}), (30, {}), (16, {"factor": 2.0}), (16, {"attention_factor": 1.4}),
        )
    ),
    *(
        {
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn", "factor": 4.0, "rope_theta": 90.0,
                    "original_max_position_embeddings": 16, **more,
                },
                "sliding_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 40.0},
            }
        }
        for more in ({}, {"truncate": False})
    ),
    {"rope_parameters": {"full_attention": {"rope_type": "default"}}, "rope_theta": 5.0},
    # falcon
    {"multi_query": False},
    {"parallel_attn": False},
    {"new_decoder_architecture": True, "num_kv_heads": 2},
    {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    {"ffn_hidden_size": 64},
    {"apply_residual_connection_post_layernorm": True},
    # opt
    {"do_layer_norm_before": False},
    {"word_embed_proj_dim": 16},
    {"_remove_final_layer_norm": True},
    {"layer_norm_elementwise_affine": False},
)  # fmt: skip


def changes() -> tuple[Change, ...]:
    """Return all changes that are tried."""
    return COMMON


def changed(config: dict[str, Any], change: Change) -> dict[str, Any]:
    """Return a config with a change; in a multimodal one it is the text model's part of it."""
    if "text_config" in config:
        return {**config, "text_config": changed(config["text_config"], change)}
    result = {**config, **change}
    num_layers = config["num_hidden_layers"]
    kinds = {
        "full": ["full_attention"] * num_layers,
        "mixed": [("full_attention", "sliding_attention")[i % 2] for i in range(num_layers)],
    }
    if isinstance(result.get("layer_types"), str) and result["layer_types"] in kinds:
        result["layer_types"] = kinds[result["layer_types"]]
    return {key: value for key, value in result.items() if value != DROP}
