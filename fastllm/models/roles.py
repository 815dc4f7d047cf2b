"""Every weight a decoder asks for, with its shape."""

from __future__ import annotations

from collections.abc import Iterator

from fastllm.models.layers import Decoder, Linear, Norm


def matrices(decoder: Decoder) -> dict[str, tuple[int, int]]:
    """Return role -> (rows, cols) of every matrix of a decoder.

    A tied head is the embedding's role and appears once.
    """
    config = decoder.config
    hidden = config.hidden_size
    # Width of the embedding where it differs from the layers' (OPT's word_embed_proj_dim).
    width = config.extra.get("word_embed_proj_dim", hidden)
    assert isinstance(width, int)
    shapes = {decoder.embed: (config.vocab_size, width)}

    def add(linear: Linear | None, rows: int, cols: int) -> None:
        if linear is not None:
            shapes[linear.weight] = (rows, cols)

    if decoder.positions is not None:
        num_positions = config.max_position_embeddings + decoder.position_offset
        shapes[decoder.positions] = (num_positions, hidden)
    add(decoder.project_in, hidden, width)
    for layer in decoder.layers:
        attention, mlp = layer.attention, layer.mlp
        num_q = attention.num_heads * attention.head_dim
        num_kv = attention.num_kv_heads * attention.head_dim
        add(attention.q, num_q, hidden)
        add(attention.k, num_kv, hidden)
        add(attention.v, num_kv, hidden)
        add(attention.o, hidden, num_q)
        add(mlp.gate, config.intermediate_size, hidden)
        add(mlp.up, config.intermediate_size, hidden)
        add(mlp.down, hidden, config.intermediate_size)
    add(decoder.project_out, width, hidden)
    add(decoder.lm_head, config.vocab_size, width)
    return shapes


def _each_norm(decoder: Decoder) -> Iterator[tuple[Norm, int]]:
    """Yield every norm with the length of its weights."""
    hidden = decoder.config.hidden_size
    for layer in decoder.layers:
        attention = layer.attention
        for norm, length in (
            (layer.input_norm, hidden),
            (attention.q_norm, attention.head_dim),
            (attention.k_norm, attention.head_dim),
            (layer.post_attention_norm, hidden),
            (layer.mlp_norm, hidden),
            (layer.post_mlp_norm, hidden),
        ):
            if norm is not None:
                yield norm, length
    if decoder.norm is not None:
        yield decoder.norm, hidden


def _each_linear(decoder: Decoder) -> Iterator[Linear]:
    """Yield every matrix product of a decoder."""
    for layer in decoder.layers:
        attention, mlp = layer.attention, layer.mlp
        yield from (attention.q, attention.k, attention.v, attention.o, mlp.up, mlp.down)
        if mlp.gate is not None:
            yield mlp.gate
    for linear in (decoder.project_in, decoder.project_out, decoder.lm_head):
        if linear is not None:
            yield linear


def norms(decoder: Decoder) -> dict[str, Norm]:
    """Return role of its weights -> every norm of a decoder."""
    return {norm.weight: norm for norm, _ in _each_norm(decoder)}


def vectors(decoder: Decoder) -> dict[str, int]:
    """Return role -> length of every norm weight and bias of a decoder."""
    lengths: dict[str, int] = {}
    for norm, length in _each_norm(decoder):
        lengths[norm.weight] = length
        if norm.bias is not None:
            lengths[norm.bias] = length
    rows = {role: shape[0] for role, shape in matrices(decoder).items()}
    for linear in _each_linear(decoder):
        if linear.bias is not None:
            lengths[linear.bias] = rows[linear.weight]
    return lengths
