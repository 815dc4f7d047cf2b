"""What a model is, from its headers alone: sizes, types, memory. Nothing is loaded."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from fastllm.config import ModelConfig
from fastllm.errors import UnsupportedError
from fastllm.formats.checkpoint import Checkpoint
from fastllm.loading import open_model
from fastllm.machine.cpus import default_threads
from fastllm.models.bind import BoundModel, MatrixSource, bind
from fastllm.models.layers import Decoder, mixers, walk
from fastllm.options import LoadOptions
from fastllm.quants import row_bytes
from fastllm.step.plan import Plan


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
        "embedding", "head", and the word of each kind of mixer ("attention", "mlp").
    plan : Plan or None
        What it will take when it is loaded; None where `refusal` says why it cannot be.
    refusal : str
    """

    path: str
    kind: str
    config: ModelConfig
    groups: dict[str, Group]
    plan: Plan | None
    refusal: str = ""

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
            if name not in ("embedding", "head") or len(self.groups) == 1:
                inner += group.type_bytes
        return max(inner, key=lambda name: inner[name]) if inner else "?"


def summarize(model: str, options: LoadOptions | None = None) -> Summary:
    """Open a model's headers and add up what is in it, and what a load with `options` takes.

    Raises
    ------
    FastLLMError
        As opening and binding do.
    """
    checkpoint = open_model(model)
    return summary_of(checkpoint, bind(checkpoint), options or LoadOptions())


def summary_of(checkpoint: Checkpoint, bound: BoundModel, options: LoadOptions) -> Summary:
    """Return the summary of a bound model."""
    groups: dict[str, Group] = {}
    uses = uses_of(bound.decoder)
    for role in bound.matrix_roles:
        groups.setdefault(uses[role], Group()).add(bound.matrix(role))
    plan, refusal = None, ""
    try:
        plan = Plan(bound, options, options.n_threads or default_threads())
    except UnsupportedError as error:
        refusal = str(error)
    return Summary(
        checkpoint.path,
        bound.kind,
        bound.decoder.config,
        groups,
        plan,
        refusal,
    )


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


def uses_of(decoder: Decoder) -> dict[str, str]:
    """Return role -> what it is for: the word of its mixer, "embedding" or "head"."""
    uses = {part.weight: "embedding" for part in walk(decoder)}
    if decoder.lm_head.weight != decoder.embed.weight:
        uses[decoder.lm_head.weight] = "head"
    for mixer in mixers(decoder):
        uses.update((part.weight, mixer.use) for part in walk(mixer))
    return uses
