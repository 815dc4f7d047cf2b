"""Names: tensor roles to the names of Hugging Face checkpoints and GGUF files.

A role is what the code calls a weight (``layers.3.self_attn.q_proj``); a *stem* is what a file
calls it, without ``.weight`` or ``.bias``. Where a file stores several roles in one tensor, a role
is some of its rows.

Sources: transformers' state dicts; llama.cpp's ``gguf-py/gguf/tensor_mapping.py`` and converters.
llama.cpp has no "opt", so the GGUF names of that family are ours (see `fastllm.models.opt`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastllm.config import ModelConfig

Rows = tuple[tuple[int, int], ...]
"""Runs of rows, (first_row, num_rows) each, in the order they are put together."""


@dataclass(frozen=True)
class Cut:
    """Which rows of a fused tensor are one role's.

    Attributes
    ----------
    rows : callable
        The config to the rows.
    num_rows : callable
        The config to the number of rows of the whole tensor.
    """

    rows: Callable[[ModelConfig], Rows]
    num_rows: Callable[[ModelConfig], int]


@dataclass(frozen=True)
class Stored:
    """Where a role may lie in a file.

    Attributes
    ----------
    stem : str
        Name of the tensor without ``.weight``; ``{i}`` stands for the layer, ``{p}`` for the
        prefix of the model's body.
    cut : Cut or None
        Which rows of the tensor are this role's; None: all of them.
    """

    stem: str
    cut: Cut | None = None


@dataclass(frozen=True)
class Names:
    """All names of one family.

    Attributes
    ----------
    hf, gguf : mapping of str to tuple of Stored
        For each role (with ``{i}`` for the layer) the places to look, best first.
    hf_prefixes : tuple of str
        What ``{p}`` may stand for; the first under which the embedding is found is taken.
    hf_ignored : tuple of str
        Regular expressions: names of tensors of Hugging Face checkpoints that are no weights of
        the text model.
    """

    hf: Mapping[str, tuple[Stored, ...]]
    gguf: Mapping[str, tuple[Stored, ...]]
    hf_prefixes: tuple[str, ...] = ("model.", "")
    hf_ignored: tuple[str, ...] = ()


# Tables some old checkpoints store although they follow from the config.
HF_IGNORED = (
    r"(^|.*\.)rotary_emb\.inv_freq",
    r".*\.(attn|attention|self_attention)\.(masked_bias|bias)",
)
# An old file's table of frequencies, which follow from the metadata.
GGUF_IGNORED = (r"blk\.\d+\.attn_rot_embd.*",)


def _num_qkv_rows(config: ModelConfig) -> int:
    return (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim


def qkv(part: str) -> Cut:
    """Return the cut of `part` ("q", "k" or "v") out of all queries, then keys, then values."""

    def rows(config: ModelConfig) -> Rows:
        num_q = config.num_attention_heads * config.head_dim
        num_kv = config.num_key_value_heads * config.head_dim
        first = {"q": 0, "k": num_q, "v": num_q + num_kv}[part]
        return ((first, num_q if part == "q" else num_kv),)

    return Cut(rows, _num_qkv_rows)


def grouped_qkv(part: str) -> Cut:
    """Return the cut of `part` where each key/value head follows the queries that share it.

    Falcon's checkpoints: for every key/value head its queries, its key, its value.
    """

    def rows(config: ModelConfig) -> Rows:
        num_queries = config.num_attention_heads // config.num_key_value_heads
        head, count = {"q": (0, num_queries), "k": (num_queries, 1), "v": (num_queries + 1, 1)}[
            part
        ]
        return tuple(
            ((group * (num_queries + 2) + head) * config.head_dim, count * config.head_dim)
            for group in range(config.num_key_value_heads)
        )

    return Cut(rows, _num_qkv_rows)


def half(which: int) -> Cut:
    """Return the cut of the first (0) or second (1) half of a fused gate and up."""

    def rows(config: ModelConfig) -> Rows:
        return ((which * config.intermediate_size, config.intermediate_size),)

    return Cut(rows, lambda config: 2 * config.intermediate_size)


def plain(stems: Mapping[str, str]) -> dict[str, tuple[Stored, ...]]:
    """Return a table of roles that each have a whole tensor of their own."""
    return {role: (Stored(stem),) for role, stem in stems.items()}


HF_LLAMA = plain(
    {
        "embed_tokens": "{p}embed_tokens",
        "norm": "{p}norm",
        "lm_head": "lm_head",
        **{
            role: "{p}" + role
            for role in (
                "layers.{i}.self_attn.q_proj",
                "layers.{i}.self_attn.k_proj",
                "layers.{i}.self_attn.v_proj",
                "layers.{i}.self_attn.o_proj",
                "layers.{i}.self_attn.q_norm",
                "layers.{i}.self_attn.k_norm",
                "layers.{i}.mlp.gate_proj",
                "layers.{i}.mlp.up_proj",
                "layers.{i}.mlp.down_proj",
                "layers.{i}.input_layernorm",
                "layers.{i}.post_attention_layernorm",
                "layers.{i}.pre_feedforward_layernorm",
                "layers.{i}.post_feedforward_layernorm",
            )
        },
    }
)

# Converters may fuse q, k and v into one tensor for any family, so both are looked for.
GGUF_LLAMA = {
    **plain(
        {
            "embed_tokens": "token_embd",
            "norm": "output_norm",
            "lm_head": "output",
            "layers.{i}.self_attn.o_proj": "blk.{i}.attn_output",
            "layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
            "layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
            "layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
            "layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
            "layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
            "layers.{i}.input_layernorm": "blk.{i}.attn_norm",
            "layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
        }
    ),
    **{
        f"layers.{{i}}.self_attn.{part}_proj": (
            Stored(f"blk.{{i}}.attn_{part}"),
            Stored("blk.{i}.attn_qkv", qkv(part)),
        )
        for part in "qkv"
    },
}

LLAMA = Names(hf=HF_LLAMA, gguf=GGUF_LLAMA)

GEMMA = Names(
    hf={**HF_LLAMA, "lm_head": (Stored("lm_head"), Stored("language_model.lm_head"))},
    gguf={
        **GGUF_LLAMA,
        **plain(
            {
                "layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
                "layers.{i}.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
                "layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
            }
        ),
    },
    hf_prefixes=("model.", "", "language_model.model.", "model.language_model."),
    hf_ignored=(
        r"(model\.)?vision_tower\..*",
        r"(model\.)?multi_modal_projector\..*",
        # Tied to the embedding in this family; some checkpoints store it a second time.
        r"(language_model\.)?lm_head\.weight",
    ),
)


def places(
    table: Mapping[str, tuple[Stored, ...]], role: str, prefix: str = ""
) -> tuple[Stored, ...]:
    """Return where `role` may lie, with layer, prefix and suffix filled in.

    Parameters
    ----------
    table : mapping
        `Names.hf` or `Names.gguf`.
    role : str
        For example ``layers.3.mlp.up_proj`` or ``layers.3.mlp.up_proj.bias``.
    prefix : str
        What ``{p}`` stands for.

    Returns
    -------
    tuple of Stored
        `stem` is now the full name of a tensor, best place first.
    """
    stem, suffix = (role[:-5], ".bias") if role.endswith(".bias") else (role, ".weight")
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", stem)
    layer = match[1] if match else ""
    key = f"layers.{{i}}.{match[2]}" if match else stem
    return tuple(
        Stored(place.stem.format(i=layer, p=prefix) + suffix, place.cut) for place in table[key]
    )
