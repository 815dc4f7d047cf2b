"""The shared layers a family is made of: what is computed, never how.

A family file turns a config into one `Decoder`. Two things run it: ``step.program`` (the kernels)
and ``tests/naive/forward.py`` (plain NumPy, the oracle). Weights are named by *role*, a dotted
string such as ``layers.3.self_attn.q_proj``; ``models.bind`` knows where a role lies in the file.
Every matrix is [out_features, in_features]: ``y = x @ W.T``.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastllm.config import ModelConfig, RopeConfig


@dataclass(frozen=True)
class Linear:
    """``y = x @ W.T + bias``; `bias` is the role of a float vector, or None."""

    weight: str
    bias: str | None = None


@dataclass(frozen=True)
class Norm:
    """RMS norm (``kind="rms"``) or layer norm (``kind="layer"``) over the last axis.

    rms: ``y = x / sqrt(mean(x**2) + eps) * (w + weight_offset)``.
    layer: ``y = (x - mean) / sqrt(var + eps) * (w + weight_offset) + b``.
    """

    kind: str
    weight: str
    eps: float
    bias: str | None = None
    weight_offset: float = 0.0


@dataclass(frozen=True)
class Attention:
    """Causal self-attention over a KV cache; grouped queries share a key/value head.

    Attributes
    ----------
    scale : float
        Factor of q.k before the softmax (usually ``head_dim ** -0.5``).
    rope : int or None
        Index into `Decoder.ropes`; None: no rotation.
    rope_style : str
        "half": dimension i turns with i + rotary_dim/2 (Hugging Face, GPT-NeoX);
        "pairs": dimension 2i turns with 2i + 1 (GGUF's permuted llama).
    sliding_window : int or None
        A token sees itself and the sliding_window - 1 tokens before it.
    softcap : float or None
        Scores become ``softcap * tanh(score / softcap)``.
    q_norm, k_norm : Norm or None
        RMS norm of each head over head_dim, before the rotation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    rope: int | None = None
    rope_style: str = "half"
    sliding_window: int | None = None
    softcap: float | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass(frozen=True)
class MLP:
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` when `gate` is None.

    `act`: "silu", "gelu" (erf), "gelu_tanh" or "relu".
    """

    act: str
    up: Linear
    down: Linear
    gate: Linear | None = None


@dataclass(frozen=True)
class Layer:
    """One residual layer.

    Sequential (``parallel=False``), each norm optional::

        x += post_attention(attention(input_norm(x)))
        x += post_mlp(mlp(mlp_norm(x)))

    Parallel (falcon)::

        x += attention(input_norm(x)) + mlp(mlp_norm(x) if mlp_norm else input_norm(x))

    ``norm_after`` (OPT with do_layer_norm_before=False): ``x = norm(x + attention(x))`` and
    ``x = norm(x + mlp(x))`` with `input_norm` and `mlp_norm`.
    """

    attention: Attention
    mlp: MLP
    input_norm: Norm | None
    mlp_norm: Norm | None
    post_attention_norm: Norm | None = None
    post_mlp_norm: Norm | None = None
    parallel: bool = False
    norm_after: bool = False


@dataclass(frozen=True)
class Decoder:
    """A whole model.

    ``x = embed(ids) * embed_scale (+ positions[pos + position_offset])``, ``project_in``, the
    layers, `norm`, ``project_out``, ``logits = lm_head(x)``, then
    ``logit_softcap * tanh(logits / logit_softcap)`` if set.
    A tied head has the embedding's role as its weight.
    """

    config: ModelConfig
    embed: str
    layers: tuple[Layer, ...]
    norm: Norm | None
    lm_head: Linear
    ropes: tuple[RopeConfig, ...] = ()
    embed_scale: float = 1.0
    positions: str | None = None
    position_offset: int = 0
    project_in: Linear | None = None
    project_out: Linear | None = None
    logit_softcap: float | None = None
