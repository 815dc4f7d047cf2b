"""Weights drawn from a seed: the same numbers on every machine, so that none need be stored.

Only raw 64-bit outputs of PCG64 are used, which NumPy promises never to change.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return float32[shape], uniform with mean 0 and standard deviation 1."""
    count = int(np.prod(shape))
    raw = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(count)
    uniform = (np.asarray(raw) >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    return (uniform * np.sqrt(3)).astype(np.float32).reshape(shape)


def weights(
    seed: int, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> dict[str, NDArray[np.float32]]:
    """Return all tensors of a checkpoint, scaled so that logits have a deviation of about 1.

    Every term counts: norms and biases differ from 1 and 0, and queries and keys are large enough
    that attention looks at some tokens more than at others.
    """
    config = config.get("text_config", config)
    tied = bool(config.get("tie_word_embeddings"))
    # Gemma's norms store w - 1.
    norm_mean = 0.0 if str(config["model_type"]).startswith("gemma") else 1.0
    result = {}
    for name, shape in shapes.items():
        values = draw(seed, name, shape)
        if name.endswith(".bias"):
            values *= 0.2
        elif len(shape) == 1:
            values = norm_mean + 0.3 * values
        elif "embed_tokens" in name or "word_embeddings" in name:
            values *= shape[1] ** -0.5 if tied else 1.0
        elif "embed_positions" in name:
            values *= 0.3
        else:
            is_query = any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key_value"))
            values *= (1.5 if is_query else 1.0) * shape[1] ** -0.5
        result[name] = values.astype(np.float32)
    return result
