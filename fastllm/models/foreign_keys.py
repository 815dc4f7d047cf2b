"""Keys that change the numbers of some family: one that does not read them refuses them by name.

A config.json may say more than transformers' class of the family reads, and GGUF metadata more than
llama.cpp does. Most of it changes nothing. What is listed here does, in the families that have it,
so a model of another family that carries it is not what its architecture says.
"""

from __future__ import annotations

ABSENT: tuple[object, ...] = ()
OFF = (False, 0)
ONE = (1,)

# config.json, each with the values that change nothing.
HF: dict[str, tuple[object, ...]] = {
    # who sees whom
    "is_causal": (True,),
    "use_bidirectional_attention": OFF,
    "attention_chunk_size": ABSENT,
    "no_rope_layers": ABSENT,
    "no_rope_layer_interval": OFF,
    # scales and caps
    "query_pre_attn_scalar": ABSENT,
    "attention_multiplier": ABSENT,
    "attn_logit_softcapping": OFF,
    "final_logit_softcapping": OFF,
    "clip_qkv": OFF,
    "embedding_multiplier": ONE,
    "embedding_scale": ONE,
    "scale_emb": ONE,
    "scale_depth": ABSENT,
    "dim_model_base": ABSENT,
    "residual_multiplier": ONE,
    "logit_scale": ONE,
    "logits_scaling": ONE,
    "swiglu_limit": ABSENT,
    # rotations
    "alibi": OFF,
    "rotary_pct": ONE,
    "rope_interleave": OFF,
    "interleaved_rope": OFF,
    # parts of layers
    "per_layer_config": ABSENT,
    "attention_bias": OFF,
    "mlp_bias": OFF,
    "use_qk_norm": OFF,
    "qk_norm": OFF,
    "qk_layernorm": OFF,
    "attn_output_gate": OFF,
    "use_parallel_residual": OFF,
    "parallel_attn": OFF,
    "apply_residual_connection_post_layernorm": OFF,
    "num_experts": OFF,
    "num_local_experts": OFF,
    "n_routed_experts": OFF,
}

# Below the architecture's own prefix.
GGUF: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.max_alibi_bias": OFF,
    "attention.clamp_kqv": OFF,
    "attention.scale": OFF,
    "attention.output_scale": (0, 1),
    "attention.value_scale": (0, 1),
    "attention.temperature_scale": OFF,
    "attention.sliding_window": OFF,
    "attention.key_length_swa": ABSENT,
    "attention.value_length": ABSENT,
    "attention.value_length_swa": ABSENT,
    "attention.rope_pattern": ABSENT,
    "attention.shared_kv_layers": OFF,
    "attention.recurrent_layers": ABSENT,
    "attn_logit_softcapping": OFF,
    "final_logit_softcapping": OFF,
    "rope.dimension_count_swa": ABSENT,
    "rope.dimension_sections": ABSENT,
    "rope.freq_base_swa": ABSENT,
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "embedding_length_per_layer_input": OFF,
    "expert_count": OFF,
    "use_parallel_residual": OFF,
    "num_loops": (0, 1),
    "hyper_connection.count": (0, 1),
    "n_deepstack_layers": OFF,
    "nextn_predict_layers": OFF,
    "adapters.count": OFF,
}
