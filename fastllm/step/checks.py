"""What a batch must be, so that kernels neither read nor write outside their memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastllm.cache.kv_cache import BLOCK_SIZE
from fastllm.errors import RequestError
from fastllm.step.batch import Batch

_INT32 = np.dtype(np.int32)
_SHAPES = (
    ("token_ids", 1),
    ("positions", 1),
    ("seq_starts", 1),
    ("logit_rows", 1),
    ("block_tables", 2),
)


@dataclass(frozen=True)
class Limits:
    """What a loaded model has room for.

    Attributes
    ----------
    max_tokens : int
        Tokens of a batch at most.
    vocab_size, n_ctx, num_blocks, num_regimes : int
        Token ids, positions, KV blocks and rope regimes are below these.
    """

    max_tokens: int
    vocab_size: int
    n_ctx: int
    num_blocks: int
    num_regimes: int


def check(batch: Batch, limits: Limits) -> None:
    """Return if a batch can be run.

    Raises
    ------
    RequestError
        What is wrong with it, in one line.
    """
    _check_shapes(batch)
    # As Python's integers: for the one token of an answer much less than reductions of NumPy.
    token_ids, positions = batch.token_ids.tolist(), batch.positions.tolist()
    starts, tokens = batch.seq_starts.tolist(), len(token_ids)
    if not 0 < tokens <= limits.max_tokens:
        raise RequestError(f"a batch of {tokens} tokens; at most {limits.max_tokens}")
    _check_range("token id", token_ids, limits.vocab_size)
    _check_range("position", positions, limits.n_ctx)
    _check_range("logit row", batch.logit_rows.tolist(), tokens)
    if batch.rope_regimes is not None:
        _check_range("rope regime", batch.rope_regimes.tolist(), limits.num_regimes)
    if starts[0] != 0 or starts[-1] != tokens or len(positions) != tokens:
        raise RequestError("seq_starts and positions do not cover the batch's tokens")
    for s, (first, end) in enumerate(pairwise(starts)):
        if not first < end <= tokens:
            raise RequestError(f"sequence {s} of the batch has no tokens, or not its own")
        start = positions[first]
        if positions[first:end] != list(range(start, start + end - first)):
            raise RequestError(f"positions of sequence {s} are not consecutive")
        used = (start + end - first - 1) // BLOCK_SIZE + 1
        table = batch.block_tables[s, :used].tolist()
        if len(table) != used:
            raise RequestError(f"the block table of sequence {s} is too short")
        _check_range("block id", table, limits.num_blocks)


def _check_shapes(batch: Batch) -> None:
    for name, dimensions in _SHAPES:
        array = getattr(batch, name)
        if array.dtype != _INT32 or array.ndim != dimensions:
            raise RequestError(f"{name} of a batch must be int32, as `Batch` describes it")
    seqs = len(batch.seq_starts) - 1
    regimes = batch.rope_regimes
    if regimes is not None and (regimes.dtype != _INT32 or regimes.shape != (seqs,)):
        raise RequestError("rope_regimes of a batch must be int32, one for each sequence")
    if seqs < 1 or len(batch.block_tables) < seqs:
        tables = len(batch.block_tables)
        raise RequestError(f"a batch of {seqs} sequences and {tables} block tables")
    if len(batch.logit_rows) > len(batch.token_ids):
        raise RequestError("a batch asks for more logit rows than it has tokens")


def _check_range(name: str, values: list[int], stop: int) -> None:
    if values and not (min(values) >= 0 and max(values) < stop):
        raise RequestError(f"{name} outside 0..{stop - 1}")
