"""The random models: one of every family and variant, with sizes that are no round numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}


def _like(base: dict[str, Any], architecture: str, model_type: str, **more: Any) -> dict[str, Any]:
    return {**base, "architectures": [architecture], "model_type": model_type, **more}


MISTRAL = _like(LLAMA, "MistralForCausalLM", "mistral", sliding_window=9)
QWEN2 = _like(
    LLAMA,
    "Qwen2ForCausalLM",
    "qwen2",
    num_attention_heads=3,
    num_key_value_heads=1,
    use_sliding_window=False,
    sliding_window=9,
    max_window_layers=1,
)
QWEN3 = _like(LLAMA, "Qwen3ForCausalLM", "qwen3", head_dim=20, num_key_value_heads=4)
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": 131,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 10,
    "sliding_window": 9,
    # Small caps, so that they bend something.
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}
GEMMA3 = {
    **GEMMA2,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 3,
}
PHI3 = {
    **_like(LLAMA, "Phi3ForCausalLM", "phi3", sliding_window=None),
    "original_max_position_embeddings": 64,
    "pad_token_id": 0,
}
FALCON = {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "vocab_size": 131,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "layer_norm_epsilon": 1e-5,
    "alibi": False,
    "bias": False,
    "multi_query": True,
    "new_decoder_architecture": False,
    "parallel_attn": True,
    "tie_word_embeddings": False,
    "activation": "gelu",
}
OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 131,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "word_embed_proj_dim": 48,
    "tie_word_embeddings": True,
    "enable_bias": True,
}
# One divisor for each of the pairs of a head of 12.
SHORT = [1.0, 1.05, 1.1, 1.3, 1.7, 2.5]
LONG = [1.1, 1.6, 2.9, 5.0, 9.0, 17.0]


@dataclass(frozen=True)
class Variant:
    """A config.json, and what is special about its checkpoint."""

    config: dict[str, Any]
    n_ctx: int = 64
    rename: Callable[[str], str] = str
    extra_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _multimodal(name: str) -> str:
    """Return the name of a text tensor in the published gemma 3 checkpoints."""
    return "language_model." + name


def _rope(**scaling: Any) -> dict[str, Any]:
    return {"rope_scaling": scaling}


VARIANTS: dict[str, Variant] = {
    "llama": Variant({**LLAMA}),
    "llama-tied": Variant({**LLAMA, "tie_word_embeddings": True}),
    "llama-mha": Variant({**LLAMA, "num_key_value_heads": 4}),
    "llama-mqa": Variant({**LLAMA, "num_key_value_heads": 1}),
    "llama-bias": Variant({**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-relu": Variant({**LLAMA, "hidden_act": "relu"}),
    "llama-gelu": Variant({**LLAMA, "hidden_act": "gelu"}),
    "llama-head-dim": Variant(
        {**LLAMA, "head_dim": 18, "num_attention_heads": 3, "num_key_value_heads": 3}
    ),
    "llama-round": Variant(
        {
            **LLAMA,
            "hidden_size": 64,
            "intermediate_size": 96,
            "vocab_size": 160,
            "rope_theta": 500000.0,
        }
    ),
    "llama-rope-linear": Variant({**LLAMA, **_rope(type="linear", factor=2.5)}),
    "llama-rope-yarn": Variant(
        {**LLAMA, **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)}
    ),
    "llama-rope-yarn-attention": Variant(
        {
            **LLAMA,
            **_rope(
                rope_type="yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                beta_fast=8.0,
                beta_slow=2.0,
                attention_factor=1.3,
            ),
        }
    ),
    "llama-rope-llama3": Variant(
        {
            **LLAMA,
            "rope_theta": 500.0,
            **_rope(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        }
    ),
    "llama-rope-parameters": Variant(
        {
            **{key: value for key, value in LLAMA.items() if not key.startswith("rope")},
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        }
    ),
    "mistral": Variant({**MISTRAL}),
    "mistral-full": Variant({**MISTRAL, "sliding_window": None}),
    "qwen2": Variant({**QWEN2}),
    "qwen2-sliding": Variant({**QWEN2, "use_sliding_window": True, "num_hidden_layers": 3}),
    "qwen2-yarn-tied": Variant(
        {
            **QWEN2,
            "tie_word_embeddings": True,
            **_rope(type="yarn", factor=2.0, original_max_position_embeddings=32),
        }
    ),
    "qwen3": Variant({**QWEN3}),
    "qwen3-bias-tied": Variant(
        {**QWEN3, "attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 2}
    ),
    "gemma2": Variant({**GEMMA2}),
    "gemma2-no-caps": Variant(
        {
            **GEMMA2,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "num_key_value_heads": 4,
        }
    ),
    "gemma3": Variant({**GEMMA3}),
    "gemma3-scaled": Variant(
        {**GEMMA3, "final_logit_softcapping": 3.0, **_rope(rope_type="linear", factor=8.0)}
    ),
    "gemma3-parameters": Variant(
        {
            **{
                key: value
                for key, value in GEMMA3.items()
                if not key.startswith("rope") and key != "sliding_window_pattern"
            },
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        }
    ),
    "gemma3-multimodal": Variant(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "eos_token_id": [1, 106],
            "text_config": {key: value for key, value in GEMMA3.items() if key != "architectures"},
        },
        rename=_multimodal,
        extra_shapes={
            "vision_tower.vision_model.post_layernorm.weight": (8,),
            "multi_modal_projector.mm_input_projection_weight": (8, 40),
        },
    ),
    "phi3": Variant({**PHI3, "num_key_value_heads": 4}),
    "phi3-sliding": Variant({**PHI3, "sliding_window": 9}),
    "phi3-partial": Variant({**PHI3, "partial_rotary_factor": 0.7}),
    "phi3-longrope-short": Variant(
        {
            **PHI3,
            "max_position_embeddings": 256,
            **_rope(type="longrope", short_factor=SHORT, long_factor=LONG),
        }
    ),
    "phi3-longrope-long": Variant(
        {
            **PHI3,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 16,
            **_rope(rope_type="longrope", short_factor=SHORT, long_factor=LONG),
        }
    ),
    "falcon": Variant({**FALCON}),
    "falcon-tied-bias": Variant({**FALCON, "bias": True, "tie_word_embeddings": True}),
    "falcon-sequential": Variant(
        {**FALCON, "parallel_attn": False, "multi_query": False, "bias": True}
    ),
    "falcon-new": Variant({**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-new-bias": Variant(
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 3, "bias": True}
    ),
    "falcon-new-one-norm": Variant(
        {
            **FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "ffn_hidden_size": 112,
        }
    ),
    "opt": Variant({**OPT}),
    "opt-after": Variant({**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 30}),
    "opt-projected": Variant({**OPT, "word_embed_proj_dim": 30}),
    "opt-untied-no-bias": Variant({**OPT, "tie_word_embeddings": False, "enable_bias": False}),
    "opt-no-final-norm": Variant(
        {**OPT, "_remove_final_layer_norm": True, "activation_function": "gelu_new"}
    ),
}
