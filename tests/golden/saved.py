"""Models as transformers saves them, and the logits it gives after changes of config.json.

`checkpoints/FAMILY/` holds config.json and generation_config.json as `save_pretrained` wrote them,
the tensors' names and shapes, and for each change the last token's logits, every fourth of them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.golden.weights import draw, weights

FOLDER = Path(__file__).parent / "checkpoints"
NUM_TOKENS = 24
EVERY = 4  # of the logits, to keep the files small


@dataclass(frozen=True)
class Changed:
    """A saved model with a change of its config.

    Attributes
    ----------
    change : dict
        As in `key_changes`; empty for the model as it was saved.
    config : dict
        config.json with the change.
    shapes : dict of str to tuple of int
        Tensors of its checkpoint, as transformers names them on disk.
    logits : float32[n]
        Every fourth logit after the last token.
    has_effect : bool
        Whether transformers gives other logits than without the change.
    """

    family: str
    change: dict[str, Any]
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    logits: NDArray[np.float32]
    has_effect: bool
    seed: int

    @property
    def name(self) -> str:
        """The change in one line."""
        return json.dumps(self.change, separators=(",", ":")).replace('"', "") or "as saved"

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """The sequence whose last token was asked for."""
        return token_ids(self.seed, self.config.get("text_config", self.config)["vocab_size"])


def token_ids(seed: int, vocab_size: int) -> NDArray[np.int64]:
    """Return int64[NUM_TOKENS], the same for a seed on every machine."""
    uniform = draw(seed, "token_ids", (NUM_TOKENS,)) / (2 * np.sqrt(3)) + 0.5
    return (uniform * (vocab_size - 1)).astype(np.int64)


def families() -> list[str]:
    """Return the names of all saved models."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def reads(family: str) -> list[str]:
    """Return the attributes of its configuration that transformers' code of a family reads."""
    names: list[str] = json.loads((FOLDER / family / "changes.json").read_text())["reads"]
    return names


def saved(family: str) -> list[Changed]:
    """Return a model as it was saved, then with each change."""
    from tests.golden.key_changes import changed

    config = json.loads((FOLDER / family / "config.json").read_text())
    meta = json.loads((FOLDER / family / "changes.json").read_text())
    rows = np.load(FOLDER / family / "logits.npy")
    shapes = {name: tuple(shape) for name, shape in meta["shapes"].items()}
    result = [Changed(family, {}, config, shapes, rows[0], False, meta["seed"])]
    for entry in meta["changes"]:
        own = {
            name: shape for name, shape in shapes.items() if name not in entry.get("without", ())
        }
        own.update((name, tuple(shape)) for name, shape in entry.get("shapes", {}).items())
        result.append(
            Changed(
                family, entry["change"], changed(config, entry["change"]), own,
                rows[entry["row"]], entry["row"] != 0, meta["seed"],
            )
        )  # fmt: skip
    return result


def materialize(model: Changed, directory: Path) -> Path:
    """Write a model as transformers would have saved it; return the folder."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    source = FOLDER / model.family
    shutil.copy(source / "config.json", directory)
    if model.change:
        (directory / "config.json").write_text(json.dumps(model.config))
    generation = source / "generation_config.json"
    if generation.exists():
        shutil.copy(generation, directory)
    values = weights(model.seed, model.shapes, model.config)
    save_file(values, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
