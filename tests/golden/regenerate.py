"""Run transformers on the random models of `VARIANTS` and store what it says.

    pip install torch transformers safetensors
    python -m tests.golden.regenerate [NAME ...]

Run from the root of the repository; README.md says with which versions it was run last.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.golden.cases import FOLDER
from tests.golden.variants import VARIANTS
from tests.golden.weights import draw, weights

NUM_TOKENS = 40


def shapes_of(model: torch.nn.Module, config: dict) -> dict[str, tuple[int, ...]]:
    """Return the tensors a checkpoint of `model` holds: a tied head is not stored."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        shapes.pop("lm_head.weight", None)
    return shapes


def run(name: str, seed: int) -> None:
    """Compute and store one case."""
    variant = VARIANTS[name]
    config = variant.config
    text = config.get("text_config", config)
    with tempfile.TemporaryDirectory() as folder:
        # Read back from a file, so that it is transformers that interprets config.json.
        Path(folder, "config.json").write_text(json.dumps(text))
        loaded = transformers.AutoConfig.from_pretrained(folder)
    loaded._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(loaded, dtype=torch.float32).eval()

    shapes = shapes_of(model, text)
    stored = {variant.rename(old): shape for old, shape in shapes.items()}
    values = weights(seed, {**stored, **variant.extra_shapes}, config)
    state = {old: torch.from_numpy(values[variant.rename(old)]) for old in shapes}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name == "lm_head.weight" for name in missing), missing
    model.tie_weights()

    uniform = draw(seed, "token_ids", (NUM_TOKENS,)) / (2 * np.sqrt(3)) + 0.5
    token_ids = (uniform * (text["vocab_size"] - 1)).astype(np.int64)
    with torch.no_grad():
        logits = model(torch.from_numpy(token_ids)[None]).logits[0].numpy()
    assert logits.dtype == np.float32
    FOLDER.mkdir(exist_ok=True)
    meta = {
        "n_ctx": variant.n_ctx,
        "seed": seed,
        "config": config,
        "shapes": {**stored, **variant.extra_shapes},
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(meta, separators=(",", ":")) + "\n")
    np.savez(FOLDER / f"{name}.npz", token_ids=token_ids.astype(np.int32), logits=logits)
    sys.stdout.write(f"{name}: standard deviation of logits {logits.std():.3f}\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or VARIANTS:
        run(name, seed=zlib.crc32(name.encode()))
