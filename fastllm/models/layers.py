"""The shared layers a family is made of: what is computed, never how.

A family file turns a config into one `Decoder`. Two things run it: ``step.program`` (the kernels)
and ``tests/naive/forward.py`` (plain NumPy, the oracle). Weights are named by *role*, a dotted
string such as ``layers.3.self_attn.q_proj``; ``models.bind`` knows where a role lies in the file.
Every matrix is [rows, columns] = [out_features, in_features]: ``y = x @ W.T``.

A decoder is a tree. Its leaves are the parts that have weights: `Table`, `Linear`, `Norm`, each
with its own sizes. `walk` yields them all, so that nobody else needs to know what is in a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, overload

from fastllm.config import ModelConfig, RopeConfig

P = TypeVar("P", bound="Part")
M = TypeVar("M", bound="Mixer")


class Node:
    """Something whose fields may hold parts, other nodes, or tuples of either."""


# ---------------------------------------------------------------------- parts, the leaves
@dataclass(frozen=True)
class Part:
    """Something with weights; `weight` is their role."""

    weight: str


@dataclass(frozen=True)
class Table(Part):
    """Rows that are looked up by number: embeddings, learned positions."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Linear(Part):
    """``y = x @ W.T + bias``; `bias` is the role of float32[rows], or None."""

    rows: int
    columns: int
    bias: str | None = None


@dataclass(frozen=True)
class Norm(Part):
    """RMS norm (``kind="rms"``) or layer norm (``kind="layer"``) over the last axis, of `size`.

    rms: ``y = x / sqrt(mean(x**2) + eps) * (w + weight_offset)``.
    layer: ``y = (x - mean) / sqrt(var + eps) * (w + weight_offset) + b``.
    """

    kind: str
    size: int
    eps: float
    bias: str | None = None
    weight_offset: float = 0.0


# ---------------------------------------------------------------------- mixers
class Mixer(Node):
    """What a branch computes of its input, float[tokens, hidden_size] to the same shape.

    A new one is a dataclass with its parts as fields. `walk` finds them; ``step.program`` and
    ``tests/naive/forward.py`` have a method for each class.

    Attributes
    ----------
    use : str
        What its weights are for, in one word: in summaries, and in the names of buffers.
    """

    use: ClassVar[str]

    @property
    def inputs(self) -> tuple[Linear, ...]:
        """The projections that read the branch's input itself."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Attention(Mixer):
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

    use = "attention"

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

    @property
    def inputs(self) -> tuple[Linear, ...]:
        """Queries, keys, values."""
        return (self.q, self.k, self.v)


@dataclass(frozen=True, kw_only=True)
class MLP(Mixer):
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` when `gate` is None.

    `act`: "silu", "gelu" (erf), "gelu_tanh" or "relu".
    """

    use = "mlp"

    act: str
    gate: Linear | None = None
    up: Linear
    down: Linear

    @property
    def inputs(self) -> tuple[Linear, ...]:
        """Gate and up."""
        return (self.up,) if self.gate is None else (self.gate, self.up)


# ---------------------------------------------------------------------- the tree
@dataclass(frozen=True, kw_only=True)
class Branch(Node):
    """``x = sum_norm(x + output_norm(mixer(input_norm(x))))``, each norm optional.

    `input_norm` is the usual one; gemma has `output_norm` as well; OPT with
    ``do_layer_norm_before=False`` has `sum_norm` only.
    """

    mixer: Mixer
    input_norm: Norm | None = None
    output_norm: Norm | None = None
    sum_norm: Norm | None = None


@dataclass(frozen=True, kw_only=True)
class Layer(Node):
    """Branches, one after the other, or side by side (falcon).

    Parallel: all branches read the same x and are added to it together; those with the same
    `input_norm` share its result. They have no `output_norm` and no `sum_norm`.
    """

    branches: tuple[Branch, ...]
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class Decoder(Node):
    """A whole model.

    ``x = embed(ids) * embed_scale (+ positions[pos + position_offset])``, ``project_in``, the
    layers, `norm`, ``project_out``, ``logits = lm_head(x)``, then
    ``logit_softcap * tanh(logits / logit_softcap)`` if set.
    A tied head has the embedding's role as its weight.
    """

    config: ModelConfig
    ropes: tuple[RopeConfig, ...] = ()
    embed: Table
    embed_scale: float = 1.0
    positions: Table | None = None
    position_offset: int = 0
    project_in: Linear | None = None
    layers: tuple[Layer, ...]
    norm: Norm | None
    project_out: Linear | None = None
    lm_head: Linear
    logit_softcap: float | None = None

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every mixer that keeps keys and values, in the order in which they are computed."""
        return tuple(mixers(self, Attention))


@overload
def walk(node: Node) -> Iterator[Part]: ...
@overload
def walk(node: Node, kind: type[P]) -> Iterator[P]: ...
def walk(node: Node, kind: type[Any] = Part) -> Iterator[Any]:
    """Yield every part of a decoder, a layer, a branch or a mixer, in the order of its fields.

    Parameters
    ----------
    node : Node
    kind : type
        Only parts of this class. A weight that two parts share (a tied head, a norm of two
        branches) comes once for each.
    """
    for value in _values(node):
        if isinstance(value, kind):
            yield value
        elif isinstance(value, Node):
            yield from walk(value, kind)


@overload
def mixers(node: Node) -> Iterator[Mixer]: ...
@overload
def mixers(node: Node, kind: type[M]) -> Iterator[M]: ...
def mixers(node: Node, kind: type[Any] = Mixer) -> Iterator[Any]:
    """Yield every mixer of this class; those inside of a mixer belong to it and do not come."""
    for value in _values(node):
        if isinstance(value, Mixer):
            if isinstance(value, kind):
                yield value
        elif isinstance(value, Node):
            yield from mixers(value, kind)


def _values(node: Node) -> Iterator[object]:
    """Yield the values of all fields, tuples one by one."""
    for field in fields(node):  # type: ignore[arg-type]
        value = getattr(node, field.name)
        if isinstance(value, tuple):
            yield from value
        else:
            yield value
