"""What llama, mistral, qwen, gemma and phi3 share: rope, RMS norms, a gated MLP.

Their files say how their family differs; sizes, ranges and the list of layers are here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from fastllm.config import ModelConfig, RopeConfig
from fastllm.errors import UnsupportedError
from fastllm.models import config_keys, parts, rope
from fastllm.models.keys import MAX_LAYERS, MAX_SIZE, MAX_VOCAB, Keys
from fastllm.models.layers import Branch, Decoder, Layer, Norm
from fastllm.models.rope_keys import rope_from_gguf, rope_from_hf, rope_to_gguf


@dataclass(frozen=True)
class GatedConfig(ModelConfig):
    """A `ModelConfig` with what only these families have.

    Attributes
    ----------
    rope : RopeConfig
        Rotation of the layers that see everything (and of all, unless `local_rope` is set).
    local_rope : RopeConfig or None
        Rotation of sliding layers, where it differs (gemma3).
    sliding_window : int or None
        Tokens that a sliding layer sees.
    sliding_layers : tuple of bool
        For each layer whether it slides.
    qkv_bias, o_bias, mlp_bias : bool
        Which projections have a bias.
    query_pre_attn_scalar : float
        Scores are divided by its square root; `head_dim` in most families.
    attn_logit_softcapping, final_logit_softcapping : float or None
        Soft caps of scores and logits.
    """

    rope: RopeConfig = field(default_factory=RopeConfig)
    local_rope: RopeConfig | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    query_pre_attn_scalar: float = 1.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None


def config_from_hf(
    keys: Keys,
    architecture: str,
    *,
    hidden_act: str = "silu",
    tie_word_embeddings: bool = False,
    act_keys: tuple[str, ...] = ("hidden_act",),
    partial_rotation: bool = False,
) -> GatedConfig:
    """Read what all these families spell alike in config.json; no biases, nothing slides.

    Parameters
    ----------
    keys : Keys
        The (text) config.
    architecture : str
        Name of the family.
    hidden_act, tie_word_embeddings, act_keys
        The family's defaults and its spellings of ``hidden_act``.
    partial_rotation : bool
        Whether the family reads ``partial_rotary_factor``.
    """
    if keys.has("quantization_config"):
        method = (keys.section("quantization_config") or keys).text("quant_method", default="?")
        raise UnsupportedError(
            f"{keys.where}: quantization_config {method!r} is not built; take the unquantized "
            "model, or a GGUF file"
        )
    hidden_size = keys.integer("hidden_size")
    num_heads = keys.integer("num_attention_heads")
    num_kv_heads = keys.integer("num_key_value_heads", default=num_heads)
    config_keys.check_heads(keys.where, num_heads, num_kv_heads)
    head_dim = config_keys.head_size(keys, hidden_size, num_heads, "head_dim")
    max_positions = keys.integer("max_position_embeddings", high=MAX_SIZE)
    bos, ends = config_keys.hf_tokens(keys)
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    rotation = rope_from_hf(keys, head_dim, max_positions, partial=partial_rotation)
    return GatedConfig(
        architecture=architecture,
        vocab_size=keys.integer("vocab_size", high=MAX_VOCAB),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=rope.max_positions(rotation, max_positions),
        hidden_act=config_keys.activation(keys, *act_keys, default=hidden_act),
        rms_norm_eps=keys.number("rms_norm_eps", default=1e-6, high=1.0),
        tie_word_embeddings=keys.flag("tie_word_embeddings", default=tie_word_embeddings),
        bos_token_id=bos,
        eos_token_ids=ends,
        name=keys.text("_name_or_path", default=""),
        rope=rotation,
        sliding_layers=(False,) * num_layers,
        query_pre_attn_scalar=float(head_dim),
    )


def config_from_gguf(
    keys: Keys, tensor_names: Collection[str], architecture: str, *, hidden_act: str = "silu"
) -> GatedConfig:
    """Read what all these families spell alike in GGUF metadata.

    Biases and the tied head follow from which tensors there are. With
    ``attention.sliding_window`` every layer slides, or those that
    ``attention.sliding_window_pattern`` names.
    """
    if keys.has("expert_count") and keys.integer("expert_count", low=0):
        raise UnsupportedError(
            f"{keys.where}: {keys.prefix}expert_count is {keys.integer('expert_count')}; "
            "mixtures of experts are not built"
        )
    hidden_size = keys.integer("embedding_length")
    num_heads = keys.integer("attention.head_count")
    num_kv_heads = keys.integer("attention.head_count_kv", default=num_heads)
    config_keys.check_heads(keys.where, num_heads, num_kv_heads)
    head_dim = config_keys.head_size(keys, hidden_size, num_heads, "attention.key_length")
    for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        keys.refuse(key, built=(head_dim,))
    max_positions = keys.integer("context_length", high=MAX_SIZE)
    bos, ends = config_keys.gguf_tokens(keys)
    num_layers = keys.integer("block_count", high=MAX_LAYERS)
    window = keys.integer("attention.sliding_window", default=0, low=0)
    scale = keys.number("attention.scale", default=0.0, high=1e6)
    rotation = rope_from_gguf(keys, head_dim, max_positions)
    return GatedConfig(
        architecture=architecture,
        vocab_size=config_keys.gguf_vocab_size(keys),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("feed_forward_length"),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=rope.max_positions(rotation, max_positions),
        hidden_act=config_keys.gguf_activation(keys, hidden_act),
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon", high=1.0),
        tie_word_embeddings="output.weight" not in tensor_names,
        bos_token_id=bos,
        eos_token_ids=ends,
        name=Keys(keys.values, keys.where, "general.").text("name", default=""),
        rope=rotation,
        sliding_window=window or None,
        sliding_layers=(
            config_keys.sliding_layers_from_gguf(keys, num_layers, 0)
            if window
            else (False,) * num_layers
        ),
        qkv_bias="blk.0.attn_q.bias" in tensor_names or "blk.0.attn_qkv.bias" in tensor_names,
        o_bias="blk.0.attn_output.bias" in tensor_names,
        mlp_bias="blk.0.ffn_down.bias" in tensor_names,
        query_pre_attn_scalar=max(scale, 1e-6) ** -2 if scale else float(head_dim),
    )


def config_to_gguf(
    config: GatedConfig, architecture: str, *, hidden_act: str = "silu"
) -> dict[str, object]:
    """Return GGUF metadata: what `config_from_gguf` reads, every key said.

    Parameters
    ----------
    config : GatedConfig
    architecture : str
        Value of ``general.architecture``, and the keys' prefix.
    hidden_act : str
        The activation that readers take where the file says none.
    """
    keys = {
        **config_keys.sizes_to_gguf(config),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        **rope_to_gguf(config.rope),
    }
    if config.sliding_window is not None:
        keys["attention.sliding_window"] = config.sliding_window
        if not all(config.sliding_layers):
            keys["attention.sliding_window_pattern"] = list(config.sliding_layers)
    if config.local_rope is not None:
        keys["rope.freq_base_swa"] = config.local_rope.theta
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        cap = getattr(config, name)
        if cap is not None:
            keys[name] = cap
    return config_keys.prefixed(keys, architecture, config.hidden_act, hidden_act)


def gated_decoder(
    config: GatedConfig,
    *,
    rope_style: str = "half",
    weight_offset: float = 0.0,
    qk_norm: bool = False,
    sandwich_norms: bool = False,
    embed_scale: float = 1.0,
) -> Decoder:
    """Return the layers of a model of these families.

    Parameters
    ----------
    config : GatedConfig
        Its sizes and numbers.
    rope_style : str
        "half" or "pairs", see `fastllm.models.layers.Attention`.
    weight_offset : float
        Added to the weights of RMS norms (gemma stores w - 1 in Hugging Face checkpoints).
    qk_norm : bool
        Queries and keys are normed head by head.
    sandwich_norms : bool
        Attention and MLP are normed before and after (gemma).
    embed_scale : float
        Factor of embeddings.
    """

    def norm(role: str, size: int = config.hidden_size) -> Norm:
        return Norm(role, "rms", size, config.rms_norm_eps, weight_offset=weight_offset)

    def layer(i: int) -> Layer:
        at = f"layers.{i}"
        slides = config.sliding_layers[i]
        attention = parts.attention(
            config,
            i,
            qkv_bias=config.qkv_bias,
            o_bias=config.o_bias,
            scale=config.query_pre_attn_scalar**-0.5,
            rope=1 if slides and config.local_rope is not None else 0,
            rope_style=rope_style,
            sliding_window=config.sliding_window if slides else None,
            softcap=config.attn_logit_softcapping,
            q_norm=norm(f"{at}.self_attn.q_norm", config.head_dim) if qk_norm else None,
            k_norm=norm(f"{at}.self_attn.k_norm", config.head_dim) if qk_norm else None,
        )
        mlp = parts.mlp(config, i, gated=True, bias=config.mlp_bias)
        if not sandwich_norms:
            return Layer(
                branches=(
                    Branch(mixer=attention, input_norm=norm(f"{at}.input_layernorm")),
                    Branch(mixer=mlp, input_norm=norm(f"{at}.post_attention_layernorm")),
                )
            )
        return Layer(
            branches=(
                Branch(
                    mixer=attention,
                    input_norm=norm(f"{at}.input_layernorm"),
                    output_norm=norm(f"{at}.post_attention_layernorm"),
                ),
                Branch(
                    mixer=mlp,
                    input_norm=norm(f"{at}.pre_feedforward_layernorm"),
                    output_norm=norm(f"{at}.post_feedforward_layernorm"),
                ),
            )
        )

    return Decoder(
        config=config,
        ropes=(config.rope,) if config.local_rope is None else (config.rope, config.local_rope),
        embed=parts.embedding(config),
        embed_scale=embed_scale,
        layers=tuple(layer(i) for i in range(config.num_hidden_layers)),
        norm=norm("norm"),
        lm_head=parts.head(config),
        logit_softcap=config.final_logit_softcapping,
    )
