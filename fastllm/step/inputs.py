"""What tokens bring into the step: their embeddings, learned positions and angles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastllm.models.bind import BoundModel
from fastllm.step.batch import Batch
from fastllm.step.buffers import Buffers
from fastllm.step.embedding import RowReader
from fastllm.step.plan import num_regimes, rotations
from fastllm.step.rope_table import RopeTable


class Inputs:
    """Readers and tables, and the rows of the buffers that they fill.

    Parameters
    ----------
    model : BoundModel
    n_ctx : int

    Attributes
    ----------
    ropes : dict of (int, str) to RopeTable
        By rope of the decoder and style.
    num_regimes : int
        Sets of factors that the tables hold: 2 with LongRoPE.
    x : float32[max_tokens, stride / 4]
        The rows that the layers work on; there is `place` first.
    """

    def __init__(self, model: BoundModel, n_ctx: int) -> None:
        self._decoder = decoder = model.decoder
        self._embed = RowReader(model.matrix(decoder.embed.weight))
        self._positions = (
            RowReader(model.matrix(decoder.positions.weight), 0) if decoder.positions else None
        )
        self.num_regimes = num_regimes(decoder, n_ctx)
        self.ropes = {
            (rope, style): RopeTable(decoder.ropes[rope], style, n_ctx, self.num_regimes)
            for rope, style in rotations(decoder)
        }

    def place(self, buffers: Buffers) -> None:
        """Take the rows to fill, once the buffers have their memory."""
        hidden = self._decoder.config.hidden_size
        self.x = self._embedded = _float_rows(buffers, "x", hidden)
        if self._decoder.project_in is not None:
            self._embedded = _float_rows(buffers, "embedded", self._embed.columns)
        self._embedded = self._embedded[:, : self._embed.columns]
        if self._positions is not None:
            self._position_rows = _float_rows(buffers, "positions", hidden)

    def put(self, batch: Batch) -> None:
        """Put the tokens' embeddings where the step begins, and have the angles they need."""
        tokens, decoder = len(batch.token_ids), self._decoder
        embedded = self._embed.read(batch.token_ids)
        if decoder.embed_scale == 1.0:
            self._embedded[:tokens] = embedded
        else:
            scale = np.float32(decoder.embed_scale)
            np.multiply(embedded, scale, out=self._embedded[:tokens])
        if self._positions is not None:
            values = self._positions.read(batch.positions + np.int32(decoder.position_offset))
            self._position_rows[:tokens, : values.shape[1]] = values
        if self.ropes:
            self._have_angles(batch)

    def _have_angles(self, batch: Batch) -> None:
        """Compute the rows of the rope tables that a batch needs, where they are not there yet."""
        if self.num_regimes == 1 or batch.rope_regimes is None:
            lasts = {0: max(batch.positions.tolist()) + 1}
        else:
            ends = batch.positions[batch.seq_starts[1:] - 1] + 1
            lasts = {
                regime: int(ends[batch.rope_regimes == regime].max(initial=0))
                for regime in range(self.num_regimes)
            }
        for table in self.ropes.values():
            for regime, last in lasts.items():
                if table.filled[regime] < last:
                    table.ensure(last, regime)

    def close(self) -> None:
        """Close the files and free the tables; the buffers are their owner's."""
        self._embed.close()
        if self._positions is not None:
            self._positions.close()
        del self.x, self._embedded
        for table in self.ropes.values():
            table.close()


def _float_rows(buffers: Buffers, name: str, columns: int) -> NDArray[np.float32]:
    stride = buffers.rows(name, columns).stride
    rows: NDArray[np.float32] = buffers.view_bytes(name).view(np.float32)
    return rows.reshape(-1, stride // 4)
