"""Golden cases: a config, tokens, and the logits transformers gave; see README.md beside this.

`cases` lists them, `materialize` and `materialize_gguf` write the model of one into a folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.golden.weights import weights

FOLDER = Path(__file__).parent / "vectors"


@dataclass(frozen=True)
class Case:
    """One random model.

    Attributes
    ----------
    name : str
        Family and variant, for example "llama-rope-yarn".
    config : dict
        Its config.json.
    token_ids : int64[n]
    logits : float32[n, vocab_size]
        From transformers in float32 with eager attention.
    n_ctx : int
        Size of the context for which they hold (LongRoPE depends on it).
    seed : int
        Of the weights.
    shapes : dict of str to tuple of int
        Tensors of the checkpoint, by transformers' names.
    """

    name: str
    config: dict[str, Any]
    token_ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    n_ctx: int
    seed: int
    shapes: dict[str, tuple[int, ...]]

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Return the tensors of the checkpoint, by transformers' names."""
        return weights(self.seed, self.shapes, self.config)


@cache
def cases() -> tuple[Case, ...]:
    """Return all cases, by name."""
    return tuple(_load(path) for path in sorted(FOLDER.glob("*.json")))


def case(name: str) -> Case:
    """Return the case of this name."""
    return _load(FOLDER / f"{name}.json")


def _load(path: Path) -> Case:
    meta = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as arrays:
        return Case(
            name=path.stem,
            config=meta["config"],
            token_ids=arrays["token_ids"].astype(np.int64),
            logits=arrays["logits"],
            n_ctx=meta["n_ctx"],
            seed=meta["seed"],
            shapes={name: tuple(shape) for name, shape in meta["shapes"].items()},
        )


def materialize(case: Case, directory: Path) -> Path:
    """Write the model as a Hugging Face folder (config.json, model.safetensors); return it."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(case.config))
    save_file(case.weights(), directory / "model.safetensors")
    return directory


def materialize_gguf(case: Case, directory: Path) -> Path:
    """Write the model as a float32 GGUF file, converted as llama.cpp converts; return its path."""
    from tests.golden.gguf_conversion import write_gguf

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{case.name}.gguf"
    write_gguf(path, case.config, case.weights())
    return path
