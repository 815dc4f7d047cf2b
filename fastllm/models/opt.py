"""OPT: learned positions, layer norms before or after, ReLU, optionally projected embeddings.

llama.cpp has no such architecture; the GGUF spelling is ours, along its conventions:
``general.architecture`` is "opt"; sizes and ``attention.layer_norm_epsilon`` as usual;
``opt.word_embed_proj_dim`` (absent: the hidden size), ``opt.do_layer_norm_before`` (absent: true).
Tensors: ``token_embd``, ``position_embd`` (with its two unused leading rows), ``project_in``,
``project_out``, ``output_norm``, and in layers ``attn_norm``, ``attn_q/k/v/output``, ``ffn_norm``,
``ffn_up``, ``ffn_down``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fastllm.config import ModelConfig
from fastllm.models import config_keys, foreign_keys, names, parts
from fastllm.models.keys import MAX_LAYERS, MAX_VOCAB, Keys
from fastllm.models.layers import Branch, Decoder, Layer, Linear, Mixer, Table

GGUF_ARCHITECTURE = "opt"
POSITION_OFFSET = 2  # the table's first two rows were left for padding
NAMES = names.Names(
    hf=names.plain(
        {
            "embed_tokens": "{p}embed_tokens",
            "embed_positions": "{p}embed_positions",
            "project_in": "{p}project_in",
            "project_out": "{p}project_out",
            "norm": "{p}final_layer_norm",
            "lm_head": "lm_head",
            "layers.{i}.self_attn.q_proj": "{p}layers.{i}.self_attn.q_proj",
            "layers.{i}.self_attn.k_proj": "{p}layers.{i}.self_attn.k_proj",
            "layers.{i}.self_attn.v_proj": "{p}layers.{i}.self_attn.v_proj",
            "layers.{i}.self_attn.o_proj": "{p}layers.{i}.self_attn.out_proj",
            "layers.{i}.mlp.up_proj": "{p}layers.{i}.fc1",
            "layers.{i}.mlp.down_proj": "{p}layers.{i}.fc2",
            "layers.{i}.input_layernorm": "{p}layers.{i}.self_attn_layer_norm",
            "layers.{i}.post_attention_layernorm": "{p}layers.{i}.final_layer_norm",
        }
    ),
    gguf={
        **names.GGUF_LLAMA,
        **names.plain(
            {
                "embed_positions": "position_embd",
                "project_in": "project_in",
                "project_out": "project_out",
            }
        ),
    },
    hf_prefixes=("model.decoder.", "decoder.", ""),
)


@dataclass(frozen=True)
class OPTConfig(ModelConfig):
    """A `ModelConfig` with what only OPT has.

    Attributes
    ----------
    word_embed_proj_dim : int
        Width of embeddings; projected to and from `hidden_size` where it differs.
    do_layer_norm_before : bool
        Norms stand before attention and MLP, not after the residual sum.
    final_norm : bool
        A norm after the last layer.
    bias : bool
        All projections of the layers have a bias.
    """

    word_embed_proj_dim: int = 0
    do_layer_norm_before: bool = True
    final_norm: bool = True
    bias: bool = True


def config_from_hf(config: Mapping[str, object]) -> OPTConfig:
    """Read a config.json.

    Raises
    ------
    UnsupportedError
        Norms without weights, and activations that are not built.
    """
    keys = Keys(config, "config.json")
    keys.refuse("layer_norm_elementwise_affine", built=(True,))
    hidden_size = keys.integer("hidden_size")
    num_heads = keys.integer("num_attention_heads")
    width = keys.integer("word_embed_proj_dim", default=hidden_size)
    before = keys.flag("do_layer_norm_before", default=True)
    bos, ends = config_keys.hf_tokens(keys)
    config_keys.check_layer_types(keys, "full_attention")
    read = OPTConfig(
        architecture="opt",
        vocab_size=keys.integer("vocab_size", high=MAX_VOCAB),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("ffn_dim"),
        num_hidden_layers=keys.integer("num_hidden_layers", high=MAX_LAYERS),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=config_keys.head_size(keys, hidden_size, num_heads, "head_dim"),
        max_position_embeddings=keys.integer("max_position_embeddings"),
        hidden_act=config_keys.activation(keys, "activation_function", default="relu"),
        tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        bos_token_id=bos,
        eos_token_ids=ends,
        name=keys.text("_name_or_path", default=""),
        word_embed_proj_dim=width,
        do_layer_norm_before=before,
        final_norm=before and not keys.flag("_remove_final_layer_norm", default=False),
        bias=keys.flag("enable_bias", default=True),
    )
    keys.refuse_unread(foreign_keys.HF)
    return read


def config_from_gguf(metadata: Mapping[str, object], tensor_names: Collection[str]) -> OPTConfig:
    """Read GGUF metadata; biases, final norm and tied head follow from which tensors there are."""
    keys = Keys(metadata, "GGUF metadata", "opt.")
    hidden_size = keys.integer("embedding_length")
    num_heads = keys.integer("attention.head_count")
    width = keys.integer("word_embed_proj_dim", default=hidden_size)
    bos, ends = config_keys.gguf_tokens(keys)
    head_dim = config_keys.head_size(keys, hidden_size, num_heads, "attention.key_length")
    keys.refuse("attention.value_length", built=(head_dim,))
    read = OPTConfig(
        architecture="opt",
        vocab_size=config_keys.gguf_vocab_size(keys),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("feed_forward_length"),
        num_hidden_layers=keys.integer("block_count", high=MAX_LAYERS),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=head_dim,
        max_position_embeddings=keys.integer("context_length"),
        hidden_act=config_keys.gguf_activation(keys, "relu"),
        layer_norm_eps=keys.number("attention.layer_norm_epsilon", default=1e-5, high=1.0),
        tie_word_embeddings="output.weight" not in tensor_names,
        bos_token_id=bos,
        eos_token_ids=ends,
        name=Keys(metadata, keys.where, "general.").text("name", default=""),
        word_embed_proj_dim=width,
        do_layer_norm_before=keys.flag("do_layer_norm_before", default=True),
        final_norm="output_norm.weight" in tensor_names,
        bias="blk.0.ffn_up.bias" in tensor_names,
    )
    keys.refuse_unread(foreign_keys.GGUF)
    return read


def config_to_gguf(config: OPTConfig) -> dict[str, object]:
    """Return GGUF metadata."""
    keys = {
        **config_keys.sizes_to_gguf(config),
        "attention.layer_norm_epsilon": config.layer_norm_eps,
        "word_embed_proj_dim": config.word_embed_proj_dim,
        "do_layer_norm_before": config.do_layer_norm_before,
    }
    return config_keys.prefixed(keys, GGUF_ARCHITECTURE, config.hidden_act, "relu")


def decoder(config: OPTConfig, source: str) -> Decoder:  # noqa: ARG001  (alike in both)
    """Return the layers."""

    def branch(mixer: Mixer, role: str) -> Branch:
        norm = parts.layer_norm(config, role)
        if config.do_layer_norm_before:
            return Branch(mixer=mixer, input_norm=norm)
        return Branch(mixer=mixer, sum_norm=norm)

    def layer(i: int) -> Layer:
        attention = parts.attention(config, i, qkv_bias=config.bias, o_bias=config.bias)
        mlp = parts.mlp(config, i, gated=False, bias=config.bias)
        return Layer(
            branches=(
                branch(attention, f"layers.{i}.input_layernorm"),
                branch(mlp, f"layers.{i}.post_attention_layernorm"),
            )
        )

    hidden, width = config.hidden_size, config.word_embed_proj_dim
    num_positions = config.max_position_embeddings + POSITION_OFFSET
    return Decoder(
        config=config,
        embed=parts.embedding(config, width),
        positions=Table("embed_positions", num_positions, hidden),
        position_offset=POSITION_OFFSET,
        project_in=Linear("project_in", hidden, width) if width != hidden else None,
        layers=tuple(layer(i) for i in range(config.num_hidden_layers)),
        norm=parts.layer_norm(config, "norm") if config.final_norm else None,
        project_out=Linear("project_out", width, hidden) if width != hidden else None,
        lm_head=parts.head(config, width),
    )
