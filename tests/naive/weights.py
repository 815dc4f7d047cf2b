"""A bound model's weights as float32 arrays, for the oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastllm.formats.checkpoint import Checkpoint
from fastllm.models.bind import BoundModel


def weights_of(bound: BoundModel, checkpoint: Checkpoint) -> Callable[[str], NDArray[np.float32]]:
    """Return a function from role to float32 array, which remembers what it read."""
    known: dict[str, NDArray[np.float32]] = {}
    vectors = set(bound.vector_roles)

    def read(role: str) -> NDArray[np.float32]:
        if role in vectors:
            return bound.vector(role)
        source = bound.matrix(role)
        parts = [
            checkpoint.read_float32(part.tensor.name)[
                part.first_row : part.first_row + part.num_rows
            ]
            for part in source.segments
        ]
        matrix = parts[0] if len(parts) == 1 else np.concatenate(parts)
        assert matrix.shape == source.shape
        return matrix

    def weights(role: str) -> NDArray[np.float32]:
        if role not in known:
            known[role] = read(role)
        return known[role]

    return weights
