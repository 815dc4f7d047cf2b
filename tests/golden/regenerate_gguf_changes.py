"""Store what llama.cpp computes for the golden GGUF files after changes of their metadata.

    pip install llama-cpp-python
    python -m tests.golden.regenerate_gguf_changes

Run from the root of the repository; README.md says with which version it was run last.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from tests.golden.cases import case
from tests.golden.gguf_changes import CHANGES, EVERY, FOLDER, NAMES, NUM_TOKENS, write

QUIET = lib.llama_log_callback(lambda *_: None)


def compute(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """Return the last token's logits in float32; None where llama.cpp refuses the file."""
    options = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        return None
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 64, 1, 1
    settings.type_k = settings.type_v = 0  # float32
    settings.flash_attn_type = 0
    settings.swa_full = True
    context = lib.llama_init_from_model(model, settings)
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i] = int(token), i
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.logits[i] = i == len(ids) - 1
    assert lib.llama_decode(context, batch) == 0
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, len(ids) - 1), (size,)).copy()
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return logits.astype(np.float32)


def run(name: str) -> None:
    """Store one model."""
    ids = case(name).token_ids[:NUM_TOKENS]
    rows: list[NDArray[np.float32]] = []
    entries = []
    for change in CHANGES:
        with tempfile.TemporaryDirectory() as folder:
            logits = compute(write(Path(folder), name, change), ids)
        if logits is None:
            sys.stdout.write(f"{name} {change}: refused\n")
            continue
        row = 0
        if not rows or np.abs(logits[::EVERY] - rows[0]).max() > 1e-4 * rows[0].std():
            row = len(rows)
            rows.append(logits[::EVERY])
        entries.append({"change": change, "row": row})
    FOLDER.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    (FOLDER / f"{name}.json").write_text(f"[\n{lines}\n]\n")
    np.save(FOLDER / f"{name}.npy", np.array(rows, np.float32))
    sys.stdout.write(f"{name}: {len(entries)} changes, {len(rows) - 1} of them change logits\n")


if __name__ == "__main__":
    lib.llama_log_set(QUIET, None)
    lib.llama_backend_init()
    for one in sys.argv[1:] or NAMES:
        run(one)
