"""Falcon: layer norms, attention and MLP side by side, one or few key/value heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fastllm.config import ModelConfig, RopeConfig
from fastllm.models import config_keys, foreign_keys, names, parts, rope
from fastllm.models.keys import MAX_LAYERS, MAX_VOCAB, Keys
from fastllm.models.layers import Branch, Decoder, Layer
from fastllm.models.rope_keys import rope_from_gguf, rope_from_hf, rope_to_gguf

GGUF_ARCHITECTURE = "falcon"
# In falcon's new decoder the norm before attention is `ln_attn`, the one before the MLP `ln_mlp`;
# llama.cpp calls the latter `attn_norm`, as it calls the only norm of falcon-7b.
NAMES = names.Names(
    hf={
        **names.plain(
            {
                "embed_tokens": "{p}word_embeddings",
                "norm": "{p}ln_f",
                "lm_head": "lm_head",
                "layers.{i}.self_attn.o_proj": "{p}h.{i}.self_attention.dense",
                "layers.{i}.mlp.up_proj": "{p}h.{i}.mlp.dense_h_to_4h",
                "layers.{i}.mlp.down_proj": "{p}h.{i}.mlp.dense_4h_to_h",
                "layers.{i}.input_layernorm": "{p}h.{i}.input_layernorm",
                "layers.{i}.post_attention_layernorm": "{p}h.{i}.post_attention_layernorm",
                "layers.{i}.ln_attn": "{p}h.{i}.ln_attn",
                "layers.{i}.ln_mlp": "{p}h.{i}.ln_mlp",
            }
        ),
        **{
            f"layers.{{i}}.self_attn.{part}_proj": (
                names.Stored("{p}h.{i}.self_attention.query_key_value", names.grouped_qkv(part)),
            )
            for part in "qkv"
        },
    },
    gguf={
        **names.GGUF_LLAMA,
        **names.plain(
            {
                "layers.{i}.ln_attn": "blk.{i}.attn_norm_2",
                "layers.{i}.ln_mlp": "blk.{i}.attn_norm",
            }
        ),
    },
    hf_prefixes=("transformer.", ""),
)


@dataclass(frozen=True)
class FalconConfig(ModelConfig):
    """A `ModelConfig` with what only falcon has.

    Attributes
    ----------
    rope : RopeConfig
        Rotation of all layers.
    parallel_attn : bool
        Attention and MLP read the same input and are added together.
    two_norms : bool
        Each of them has a norm of its own (the new decoder).
    bias : bool
        All projections have a bias.
    """

    rope: RopeConfig = field(default_factory=RopeConfig)
    parallel_attn: bool = True
    two_norms: bool = False
    bias: bool = False


def config_from_hf(config: Mapping[str, object]) -> FalconConfig:
    """Read a config.json, in today's spelling or that of the first checkpoints (RefinedWeb).

    Raises
    ------
    UnsupportedError
        ``alibi`` (falcon-rw) and activations that are not built.
    """
    keys = Keys(config, "config.json")
    keys.refuse("alibi", built=(False,))
    keys.refuse("rotary", built=(True,))
    num_heads = keys.integer("num_attention_heads", "n_head")
    # The first falcon-40b had no flag; only it had several key/value heads.
    new_decoder = keys.flag("new_decoder_architecture", default=keys.has("n_head_kv"))
    num_kv_heads = num_heads
    if new_decoder:
        num_kv_heads = keys.integer("num_kv_heads", "n_head_kv", default=num_heads)
    elif keys.flag("multi_query", default=True):
        num_kv_heads = 1
    config_keys.check_heads(keys.where, num_heads, num_kv_heads)
    hidden_size = keys.integer("hidden_size", "n_embed")
    head_dim = config_keys.head_size(keys, hidden_size, num_heads, "head_dim")
    max_positions = keys.integer("max_position_embeddings", default=2048)
    num_norms = keys.integer("num_ln_in_parallel_attn", default=2, low=1, high=2)
    bos, ends = config_keys.hf_tokens(keys)
    config_keys.check_layer_types(keys, "full_attention")
    rotation = rope_from_hf(keys, head_dim, max_positions)
    read = FalconConfig(
        architecture="falcon",
        vocab_size=keys.integer("vocab_size", high=MAX_VOCAB),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("ffn_hidden_size", default=4 * hidden_size),
        num_hidden_layers=keys.integer("num_hidden_layers", "n_layer", high=MAX_LAYERS),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=rope.max_positions(rotation, max_positions),
        hidden_act=config_keys.activation(keys, "activation", default="gelu"),
        layer_norm_eps=keys.number("layer_norm_epsilon", default=1e-5, high=1.0),
        tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        bos_token_id=bos,
        eos_token_ids=ends,
        name=keys.text("_name_or_path", default=""),
        rope=rotation,
        parallel_attn=keys.flag("parallel_attn", default=True) or new_decoder,
        two_norms=new_decoder and num_norms == 2,
        bias=keys.flag("bias", default=False),
    )
    keys.refuse_unread(foreign_keys.HF)
    return read


def config_from_gguf(metadata: Mapping[str, object], tensor_names: Collection[str]) -> FalconConfig:
    """Read GGUF metadata; norms and biases follow from which tensors there are.

    llama.cpp writes only models with parallel attention and without biases. Ours may have both:
    biases under the usual names, and ``ffn_norm`` for the norm of a sequential MLP.
    """
    keys = Keys(metadata, "GGUF metadata", "falcon.")
    hidden_size = keys.integer("embedding_length")
    num_heads = keys.integer("attention.head_count")
    num_kv_heads = keys.integer("attention.head_count_kv", default=num_heads)
    config_keys.check_heads(keys.where, num_heads, num_kv_heads)
    head_dim = config_keys.head_size(keys, hidden_size, num_heads, "attention.key_length")
    max_positions = keys.integer("context_length")
    bos, ends = config_keys.gguf_tokens(keys)
    keys.refuse("attention.value_length", built=(head_dim,))
    rotation = rope_from_gguf(keys, head_dim, max_positions)
    read = FalconConfig(
        architecture="falcon",
        vocab_size=config_keys.gguf_vocab_size(keys),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("feed_forward_length", default=4 * hidden_size),
        num_hidden_layers=keys.integer("block_count", high=MAX_LAYERS),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=rope.max_positions(rotation, max_positions),
        hidden_act=config_keys.gguf_activation(keys, "gelu"),
        layer_norm_eps=keys.number("attention.layer_norm_epsilon", high=1.0),
        tie_word_embeddings="output.weight" not in tensor_names,
        bos_token_id=bos,
        eos_token_ids=ends,
        name=Keys(metadata, keys.where, "general.").text("name", default=""),
        rope=rotation,
        parallel_attn="blk.0.ffn_norm.weight" not in tensor_names,
        two_norms="blk.0.attn_norm_2.weight" in tensor_names,
        bias="blk.0.ffn_up.bias" in tensor_names,
    )
    keys.refuse_unread(foreign_keys.GGUF)
    return read


def config_to_gguf(config: FalconConfig) -> dict[str, object]:
    """Return GGUF metadata."""
    keys = {
        **config_keys.sizes_to_gguf(config),
        "attention.layer_norm_epsilon": config.layer_norm_eps,
        **rope_to_gguf(config.rope),
    }
    return config_keys.prefixed(keys, GGUF_ARCHITECTURE, config.hidden_act, "gelu")


def decoder(config: FalconConfig, source: str) -> Decoder:  # noqa: ARG001  (alike in both)
    """Return the layers."""

    def layer(i: int) -> Layer:
        at = f"layers.{i}"
        if config.two_norms:
            roles = ("ln_attn", "ln_mlp")
        elif config.parallel_attn:
            roles = ("input_layernorm", "input_layernorm")
        else:
            roles = ("input_layernorm", "post_attention_layernorm")
        mixers = (
            parts.attention(config, i, qkv_bias=config.bias, o_bias=config.bias, rope=0),
            parts.mlp(config, i, gated=False, bias=config.bias),
        )
        branches = (
            Branch(mixer=mixer, input_norm=parts.layer_norm(config, f"{at}.{role}"))
            for mixer, role in zip(mixers, roles, strict=True)
        )
        return Layer(branches=tuple(branches), parallel=config.parallel_attn)

    return Decoder(
        config=config,
        ropes=(config.rope,),
        embed=parts.embedding(config),
        layers=tuple(layer(i) for i in range(config.num_hidden_layers)),
        norm=parts.layer_norm(config, "norm"),
        lm_head=parts.head(config),
    )
