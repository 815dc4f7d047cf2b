"""What a model is, from its headers alone: sizes, types, memory. Nothing is loaded."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from fastllm.config import ModelConfig
from fastllm.formats.checkpoint import Checkpoint
from fastllm.loading import open_model
from fastllm.models.bind import BoundModel, MatrixSource, bind
from fastllm.models.layers import Decoder
from fastllm.quants import row_bytes

_KV_BYTES = 2  # the cache holds fp16


@dataclass
class Group:
    """Matrices of one use: how many values, in how many bytes of which types."""

    num_values: int = 0
    type_bytes: Counter[str] = field(default_factory=Counter)

    @property
    def nbytes(self) -> int:
        """Bytes of all types."""
        return sum(self.type_bytes.values())

    def add(self, matrix: MatrixSource) -> None:
        """Count one more matrix."""
        rows, columns = matrix.shape
        self.num_values += rows * columns
        self.type_bytes[matrix.type] += rows * row_bytes(matrix.type, columns)


@dataclass(frozen=True)
class Summary:
    """One model.

    Attributes
    ----------
    config : ModelConfig
    groups : dict of str to Group
        "embedding", "attention", "mlp", "head".
    kv_bytes_per_token : int
        Of the KV cache.
    """

    path: str
    kind: str
    config: ModelConfig
    groups: dict[str, Group]
    kv_bytes_per_token: int

    @property
    def num_parameters(self) -> int:
        """Values of all matrices."""
        return sum(group.num_values for group in self.groups.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(group.nbytes for group in self.groups.values())

    @property
    def main_type(self) -> str:
        """The type that holds the most bytes outside of embedding and head."""
        inner: Counter[str] = Counter()
        for name, group in self.groups.items():
            if name in ("attention", "mlp") or len(self.groups) == 1:
                inner += group.type_bytes
        return max(inner, key=lambda name: inner[name]) if inner else "?"


def summarize(model: str) -> Summary:
    """Open a model's headers and add up what is in it.

    Raises
    ------
    FastLLMError
        As opening and binding do.
    """
    checkpoint = open_model(model)
    return summary_of(checkpoint, bind(checkpoint))


def summary_of(checkpoint: Checkpoint, bound: BoundModel) -> Summary:
    """Return the summary of a bound model."""
    groups: dict[str, Group] = {}
    for role in bound.matrix_roles:
        groups.setdefault(_use_of(role), Group()).add(bound.matrix(role))
    return Summary(
        checkpoint.path,
        bound.kind,
        bound.decoder.config,
        groups,
        kv_bytes_per_token(bound.decoder),
    )


def kv_bytes_per_token(decoder: Decoder) -> int:
    """Return what one token takes in the KV cache: a key and a value per layer and KV head."""
    heads = (layer.attention for layer in decoder.layers)
    return sum(2 * a.num_kv_heads * a.head_dim * _KV_BYTES for a in heads)


def label_and_parameters(model: str) -> tuple[str, int]:
    """Return llama-bench's kind of label ("llama 135M q4_1") and the number of parameters."""
    found = summarize(model)
    return (
        f"{found.config.architecture} {_short(found.num_parameters)} {found.main_type}",
        found.num_parameters,
    )


def _short(number: int) -> str:
    if number < 1_000_000_000:
        return f"{math.ceil(number / 1e6)}M"
    return f"{number / 1e9:.1f}B"


def _use_of(role: str) -> str:
    if ".self_attn." in role or ".attention." in role:
        return "attention"
    if ".mlp." in role:
        return "mlp"
    return "head" if role.startswith("lm_head") else "embedding"
