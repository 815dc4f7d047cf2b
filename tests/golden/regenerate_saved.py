"""Store what transformers writes with `save_pretrained`, and what it computes after changes.

    pip install torch transformers safetensors
    python -m tests.golden.regenerate_saved

Run from the root of the repository; README.md says with which versions it was run last.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from tests.golden.key_changes import BASES, changed, changes
from tests.golden.saved import EVERY, FOLDER, NUM_TOKENS, token_ids
from tests.golden.weights import weights


def load_config(config: dict[str, Any]) -> transformers.PretrainedConfig:
    """Read a config as transformers reads config.json."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        loaded = transformers.AutoConfig.from_pretrained(folder)
    loaded._attn_implementation = "eager"
    return loaded


def save(model: torch.nn.Module, folder: Path) -> dict[str, str]:
    """Save a model with other numbers in each tensor; return stored name -> name in the model."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.fill_(number + 1)
    model.tie_weights()
    model.save_pretrained(folder)
    names = {float(value.flatten()[0]): name for name, value in model.state_dict().items()
             if value.is_floating_point() and value.numel()}  # fmt: skip
    stored = load_file(folder / "model.safetensors")
    return {name: names[float(value.flatten()[0])] for name, value in stored.items()}


def reads(model: torch.nn.Module) -> list[str]:
    """Return the attributes of its configuration that the modelling code of a family reads."""
    source = inspect.getsource(sys.modules[type(model).__module__])
    found = re.findall(r"config\.(\w+)|getattr\((?:self\.)?config, \"(\w+)\"", source)
    return sorted({name for names in found for name in names if name})


def compute(config: dict[str, Any], seed: int) -> tuple[np.ndarray, dict[str, tuple[int, ...]]]:
    """Return the last token's logits, and the tensors of the checkpoint."""
    loaded = load_config(config)
    model = transformers.AutoModelForCausalLM.from_config(loaded, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        names = save(model, Path(folder))
    state = model.state_dict()
    shapes = {stored: tuple(state[name].shape) for stored, name in names.items()}
    values = weights(seed, shapes, config)
    wanted = {names[stored]: torch.from_numpy(value) for stored, value in values.items()}
    model.load_state_dict(wanted, strict=False)
    model.tie_weights()
    vocab_size = config.get("text_config", config)["vocab_size"]
    ids = torch.from_numpy(token_ids(seed, vocab_size))[None]
    with torch.no_grad():
        logits = model(ids).logits[0, -1].numpy()
    return logits, shapes


def run(family: str) -> None:
    """Store one family."""
    seed = zlib.crc32(family.encode())
    folder = FOLDER / family
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as written:
        model = transformers.AutoModelForCausalLM.from_config(load_config(BASES[family]))
        model.save_pretrained(written)
        for name in ("config.json", "generation_config.json"):
            if Path(written, name).exists():
                shutil.copy(Path(written, name), folder / name)
    read = json.dumps(reads(model), separators=(",", ":"))
    config = json.loads((folder / "config.json").read_text())
    base, shapes = compute(config, seed)
    rows, entries = [base[::EVERY]], []
    for change in changes():
        try:
            logits, own = compute(changed(config, change), seed)
        except Exception as error:  # noqa: BLE001  (whatever it is that it cannot do)
            sys.stdout.write(f"{family} {change}: {type(error).__name__}\n")
            continue  # transformers does not build it
        entry = {"change": change}
        if own != shapes:
            entry["shapes"] = {n: s for n, s in own.items() if shapes.get(n) != s}
            entry["without"] = [n for n in shapes if n not in own]
        entry["row"] = 0
        if logits.shape != base.shape or np.abs(logits - base).max() > 1e-5 * base.std():
            entry["row"] = len(rows)
            rows.append(logits[::EVERY])
        entries.append(entry)
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    head = json.dumps(shapes, separators=(",", ":"))
    text = f'{{"seed":{seed},"reads":{read},"shapes":{head},"changes":[\n{lines}\n]}}\n'
    (folder / "changes.json").write_text(text)
    np.save(folder / "logits.npy", np.array(rows, np.float32))
    sys.stdout.write(f"{family}: {len(entries)} changes, {len(rows) - 1} of them change logits\n")


if __name__ == "__main__":
    assert NUM_TOKENS > 16  # beyond what the changes call the original context
    for name in sys.argv[1:] or BASES:
        run(name)
