"""Batches for the runner, written as sequences: tokens, where they begin, and their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastllm.step.batch import Batch
from fastllm.step.runner import Runner


@dataclass(frozen=True)
class Part:
    """Some tokens of one sequence: `ids` at positions `start` and on, in `blocks`.

    `regime`: of its rope, see `Batch.rope_regimes`.
    """

    ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    regime: int = 0


def batch_of(*parts: Part, rows: Sequence[int] | None = None) -> Batch:
    """One forward pass over several sequences; logits of all tokens where `rows` is left out."""
    lengths = [len(part.ids) for part in parts]
    width = max(len(part.blocks) for part in parts)
    tables = np.full((len(parts), width), -1, np.int32)  # what lies behind a table is not looked at
    for table, part in zip(tables, parts, strict=True):
        table[: len(part.blocks)] = part.blocks
    return Batch(
        token_ids=np.concatenate([part.ids for part in parts]).astype(np.int32),
        positions=np.concatenate(
            [np.arange(part.start, part.start + len(part.ids)) for part in parts]
        ).astype(np.int32),
        seq_starts=np.cumsum([0, *lengths]).astype(np.int32),
        block_tables=tables,
        logit_rows=np.asarray(range(sum(lengths)) if rows is None else rows, np.int32),
        rope_regimes=np.array([part.regime for part in parts], np.int32),
    )


def feed(runner: Runner, *parts: Part, rows: Sequence[int] | None = None) -> NDArray[np.float32]:
    """Run one batch; a copy of the logits."""
    return runner.forward(batch_of(*parts, rows=rows)).copy()


def regime_of(runner: Runner, length: int) -> int:
    """Which factors LongRoPE takes for a sequence of so many tokens."""
    return int(0 < runner.short_context < length)


def feed_cut(
    runner: Runner,
    ids: Sequence[int],
    cuts: Sequence[int],
    blocks: Sequence[int],
    regime: int = 0,
) -> NDArray[np.float32]:
    """Run one sequence in pieces that end at `cuts`; the logits of all its tokens."""
    ends = sorted({*cuts, len(ids)} - {0})
    pieces = zip([0, *ends], ends, strict=False)
    return np.concatenate(
        [feed(runner, Part(ids[first:end], first, blocks, regime)) for first, end in pieces]
    )


def assert_same_bits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Every bit is equal, signs of zeros included."""
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
