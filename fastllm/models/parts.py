"""Parts of decoders as most families have them: usual roles, sizes from the config."""

from __future__ import annotations

from typing import Any

from fastllm.config import ModelConfig
from fastllm.models.layers import MLP, Attention, Linear, Norm, Table


def linear(role: str, rows: int, columns: int, bias: bool = False) -> Linear:
    """Return a projection whose bias, if it has one, is called like its weight."""
    return Linear(role, rows, columns, f"{role}.bias" if bias else None)


def layer_norm(config: ModelConfig, role: str) -> Norm:
    """Return a layer norm over the hidden size, with a bias."""
    return Norm(role, "layer", config.hidden_size, config.layer_norm_eps, bias=f"{role}.bias")


def attention(
    config: ModelConfig, layer: int, *, qkv_bias: bool = False, o_bias: bool = False, **more: Any
) -> Attention:
    """Return the attention of a layer.

    Parameters
    ----------
    config : ModelConfig
        Heads and sizes.
    layer : int
        Number of the layer.
    qkv_bias, o_bias : bool
        Which projections have a bias.
    **more
        Further fields of `Attention`; `scale` is ``head_dim ** -0.5`` if left out.
    """
    at, hidden = f"layers.{layer}.self_attn", config.hidden_size
    width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    return Attention(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        q=linear(f"{at}.q_proj", width, hidden, qkv_bias),
        k=linear(f"{at}.k_proj", kv_width, hidden, qkv_bias),
        v=linear(f"{at}.v_proj", kv_width, hidden, qkv_bias),
        o=linear(f"{at}.o_proj", hidden, width, o_bias),
        **{"scale": config.head_dim**-0.5, **more},
    )


def mlp(config: ModelConfig, layer: int, *, gated: bool, bias: bool = False) -> MLP:
    """Return the MLP of a layer, with a gate or without."""
    at, hidden, inner = f"layers.{layer}.mlp", config.hidden_size, config.intermediate_size
    return MLP(
        act=config.hidden_act,
        gate=linear(f"{at}.gate_proj", inner, hidden, bias) if gated else None,
        up=linear(f"{at}.up_proj", inner, hidden, bias),
        down=linear(f"{at}.down_proj", hidden, inner, bias),
    )


def embedding(config: ModelConfig, width: int | None = None) -> Table:
    """Return the table of embeddings, `hidden_size` wide unless it says otherwise."""
    return Table("embed_tokens", config.vocab_size, width or config.hidden_size)


def head(config: ModelConfig, width: int | None = None) -> Linear:
    """Return the projection to logits; its matrix is the embedding where they are tied."""
    role = "embed_tokens" if config.tie_word_embeddings else "lm_head"
    return Linear(role, config.vocab_size, width or config.hidden_size)
