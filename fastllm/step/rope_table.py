"""Angles of every position of the context, computed as far as they are needed."""

from __future__ import annotations

import numpy as np

from fastllm.config import RopeConfig
from fastllm.memory.arena import Arena
from fastllm.models.rope import cos_sin

_STEP = 1024  # positions computed at a time


def table_bytes(rope: RopeConfig, n_ctx: int, num_regimes: int) -> int:
    """Bytes of a table of `num_regimes` times `n_ctx` rows."""
    return num_regimes * n_ctx * 8 * rope.rotary_dim


class RopeTable:
    """float32[num_regimes * n_ctx][2][rotary_dim]: cosines and signed sines for both partners.

    The layout is what ``kernels.rope`` reads; the angles of a position are in row
    ``regime * n_ctx + position``. Regime 0 is the only one, but for LongRoPE: there it holds the
    short factors, and regime 1 the long ones.

    Attributes
    ----------
    address : int
    filled : list of int
        For each regime the positions whose rows are computed.
    """

    def __init__(self, rope: RopeConfig, style: str, n_ctx: int, num_regimes: int = 1) -> None:
        self._rope, self._style, self._n_ctx = rope, style, n_ctx
        nbytes = table_bytes(rope, n_ctx, num_regimes)
        self._arena = Arena(nbytes)
        self.address = self._arena.alloc(nbytes, 64)
        view = self._arena.view(self.address, nbytes)
        self._table = view.view(np.float32).reshape(num_regimes, n_ctx, 2, rope.rotary_dim)
        self.filled = [0] * num_regimes

    def ensure(self, num_positions: int, regime: int = 0) -> None:
        """Compute the rows of positions below `num_positions`."""
        # a length of either kind: 1 token takes the short factors, the whole context the long ones
        num_tokens = self._n_ctx if regime else 1
        while self.filled[regime] < num_positions:
            start, stop = self.filled[regime], min(self._n_ctx, self.filled[regime] + _STEP)
            cos, sin = cos_sin(self._rope, num_tokens, np.arange(start, stop))
            rows, half = self._table[regime, start:stop], self._rope.rotary_dim // 2
            if self._style == "half":
                rows[:, 0, :half], rows[:, 0, half:] = cos, cos
                rows[:, 1, :half], rows[:, 1, half:] = -sin, sin
            else:
                rows[:, 0, 0::2], rows[:, 0, 1::2] = cos, cos
                rows[:, 1, 0::2], rows[:, 1, 1::2] = -sin, sin
            self.filled[regime] = stop

    def close(self) -> None:
        """Free the memory."""
        del self._table
        self._arena.close()
