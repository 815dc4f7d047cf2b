"""The oracle of the native step: a decoder computed in plain NumPy, written to be read.

Whole sequences, no cache, no batching. float64 by default, so that what differs from it is the
other side's rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastllm.models.layers import MLP, Attention, Branch, Decoder, Layer, Linear, Mixer, Norm
from fastllm.models.rope import cos_sin

Array = NDArray[np.floating]
Weights = Callable[[str], Array]

_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: (x * 0.5 * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def forward(
    decoder: Decoder,
    weights: Weights,
    token_ids: Sequence[int] | NDArray[np.integer],
    *,
    n_ctx: int | None = None,
    dtype: DTypeLike = np.float64,
) -> Array:
    """Return the logits after every token of one sequence.

    Parameters
    ----------
    decoder : Decoder
        What to compute.
    weights : callable
        Role to array: matrices [out, in], vectors [n].
    token_ids : int[n]
        The sequence; its first token has position 0.
    n_ctx : int, optional
        Size of the context, which LongRoPE asks for; the sequence's length if left out.
    dtype : float32 or float64
        In which everything is computed.

    Returns
    -------
    dtype[n, vocab_size]
    """
    ids = np.asarray(token_ids)
    model = _Model(decoder, weights, len(ids), n_ctx or len(ids), np.dtype(dtype))
    x = model.weight(decoder.embed.weight)[ids] * model.dtype.type(decoder.embed_scale)
    if decoder.project_in is not None:
        x = model.linear(x, decoder.project_in)
    if decoder.positions is not None:
        rows = np.arange(len(ids)) + decoder.position_offset
        x = x + model.weight(decoder.positions.weight)[rows]
    for layer in decoder.layers:
        x = model.layer(x, layer)
    x = model.norm(x, decoder.norm)
    if decoder.project_out is not None:
        x = model.linear(x, decoder.project_out)
    logits = model.linear(x, decoder.lm_head)
    return soft_cap(logits, decoder.logit_softcap)


def soft_cap(x: Array, cap: float | None) -> Array:
    """Return `x` squeezed into (-cap, cap), or as it is."""
    return x if cap is None else cap * np.tanh(x / cap)


def rotate(x: Array, cos: Array, sin: Array, style: str) -> Array:
    """Rotate the leading dimensions of heads [n, heads, head_dim] by angles [n, rotary_dim / 2]."""
    half = cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first = slice(0, half) if style == "half" else slice(0, 2 * half, 2)
    second = slice(half, 2 * half) if style == "half" else slice(1, 2 * half, 2)
    turned = x.copy()
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., second] * cos + x[..., first] * sin
    return turned


class _Model:
    """A decoder's layers as functions of activations [n, hidden_size]."""

    def __init__(
        self, decoder: Decoder, weights: Weights, n: int, n_ctx: int, dtype: np.dtype
    ) -> None:
        self.weights = weights
        self.dtype = dtype
        self.angles = [
            tuple(table.astype(dtype) for table in cos_sin(rope, n_ctx, np.arange(n)))
            for rope in decoder.ropes
        ]

    def weight(self, role: str) -> Array:
        return np.asarray(self.weights(role)).astype(self.dtype, copy=False)

    def linear(self, x: Array, linear: Linear) -> Array:
        y = x @ self.weight(linear.weight).T
        return y if linear.bias is None else y + self.weight(linear.bias)

    def norm(self, x: Array, norm: Norm | None) -> Array:
        if norm is None:
            return x
        if norm.kind == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.dtype.type(norm.eps))
        y = y * (self.weight(norm.weight) + self.dtype.type(norm.weight_offset))
        return y if norm.bias is None else y + self.weight(norm.bias)

    def layer(self, x: Array, layer: Layer) -> Array:
        if layer.parallel:
            return x + sum(self.branch(x, branch) for branch in layer.branches)
        for branch in layer.branches:
            x = self.norm(x + self.branch(x, branch), branch.sum_norm)
        return x

    def branch(self, x: Array, branch: Branch) -> Array:
        return self.norm(
            self.mixer(self.norm(x, branch.input_norm), branch.mixer), branch.output_norm
        )

    def mixer(self, x: Array, mixer: Mixer) -> Array:
        return {Attention: self.attention, MLP: self.mlp}[type(mixer)](x, mixer)

    def mlp(self, x: Array, mlp: MLP) -> Array:
        act = ACTIVATIONS[mlp.act]
        up = self.linear(x, mlp.up)
        inner = act(up) if mlp.gate is None else act(self.linear(x, mlp.gate)) * up
        return self.linear(inner, mlp.down)

    def attention(self, x: Array, attention: Attention) -> Array:
        n, a = len(x), attention
        q = self.linear(x, a.q).reshape(n, a.num_heads, a.head_dim)
        k = self.linear(x, a.k).reshape(n, a.num_kv_heads, a.head_dim)
        v = self.linear(x, a.v).reshape(n, a.num_kv_heads, a.head_dim)
        q, k = self.norm(q, a.q_norm), self.norm(k, a.k_norm)
        if a.rope is not None:
            cos, sin = self.angles[a.rope]
            q, k = rotate(q, cos, sin, a.rope_style), rotate(k, cos, sin, a.rope_style)

        distance = np.arange(n)[:, None] - np.arange(n)[None, :]
        visible = distance >= 0
        if a.sliding_window is not None:
            visible &= distance < a.sliding_window

        shared_by = a.num_heads // a.num_kv_heads
        heads = []
        for head in range(a.num_heads):
            keys, values = k[:, head // shared_by], v[:, head // shared_by]
            scores = soft_cap(q[:, head] @ keys.T * self.dtype.type(a.scale), a.softcap)
            scores = np.where(visible, scores, -np.inf)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            heads.append(scores / scores.sum(axis=-1, keepdims=True) @ values)
        return self.linear(np.concatenate(heads, axis=-1), a.o)
