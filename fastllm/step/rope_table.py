"""Angles of every position of the context, computed as far as they are needed."""

from __future__ import annotations

import numpy as np

from fastllm.config import RopeConfig
from fastllm.flash.arena import Arena
from fastllm.models.rope import cos_sin

_STEP = 1024  # positions computed at a time


class RopeTable:
    """float32[n_ctx][2][rotary_dim]: cosines and signed sines, spread over both partners.

    The layout is what ``kernels.rope`` reads; rows past `filled` are not computed yet.
    """

    def __init__(self, rope: RopeConfig, style: str, n_ctx: int) -> None:
        self._rope, self._style, self._n_ctx = rope, style, n_ctx
        row_bytes = 8 * rope.rotary_dim
        self._arena = Arena(n_ctx * row_bytes)
        self.address = self._arena.alloc(n_ctx * row_bytes, 64)
        view = self._arena.view(self.address, n_ctx * row_bytes)
        self._table = view.view(np.float32).reshape(n_ctx, 2, rope.rotary_dim)
        self.filled = 0

    def ensure(self, num_positions: int) -> None:
        """Compute the rows of positions below `num_positions`."""
        while self.filled < num_positions:
            start, stop = self.filled, min(self._n_ctx, self.filled + _STEP)
            cos, sin = cos_sin(self._rope, self._n_ctx, np.arange(start, stop))
            rows, half = self._table[start:stop], self._rope.rotary_dim // 2
            if self._style == "half":
                rows[:, 0, :half], rows[:, 0, half:] = cos, cos
                rows[:, 1, :half], rows[:, 1, half:] = -sin, sin
            else:
                rows[:, 0, 0::2], rows[:, 0, 1::2] = cos, cos
                rows[:, 1, 0::2], rows[:, 1, 1::2] = -sin, sin
            self.filled = stop

    def close(self) -> None:
        """Free the memory."""
        del self._table
        self._arena.close()
