"""Batch: what crosses the line into the native step, int32 arrays and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)  # not frozen: that costs six calls a token
class Batch:
    """Tokens of one or more sequences for one forward pass.

    The tokens of one sequence lie side by side and have consecutive positions; everything before
    the first of them must already be in the KV cache. A decode step is one token per sequence, a
    prompt chunk several of one sequence; both may be mixed.

    Attributes
    ----------
    token_ids : int32[num_tokens]
    positions : int32[num_tokens]
        Place of each token in its sequence, from 0.
    seq_starts : int32[num_seqs + 1]
        Tokens ``seq_starts[s]:seq_starts[s + 1]`` belong to sequence s.
    block_tables : int32[num_seqs, max_blocks]
        KV block of positions ``64 * j`` to ``64 * j + 63`` of sequence s.
    logit_rows : int32[num_rows]
        Indices of tokens whose logits are wanted, ascending.
    rope_regimes : int32[num_seqs] or None
        LongRoPE: 0 for a sequence that takes the short factors, 1 for the long ones. What is in
        its blocks must have been computed with the same. None: 0 for all.
    """

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    seq_starts: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logit_rows: NDArray[np.int32]
    rope_regimes: NDArray[np.int32] | None = None


class Pass:
    """A batch on its way through the layers, which may be left between two of them.

    Parameters
    ----------
    batch : Batch

    Attributes
    ----------
    part : int
        Number of the layer that comes next.
    is_kept : bool
        What the layers before made is in `x`, since the buffers serve another batch.
    x : float32[num_tokens, stride]
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.part = 0
        self.is_kept = False
        self.x = np.zeros((0, 0), np.float32)

    def keep(self, rows: NDArray[np.float32]) -> None:
        """Keep what the layers have made; a pass that is left often allocates for it once."""
        if not len(self.x):
            self.x = np.empty_like(rows)
        self.x[:], self.is_kept = rows, True
