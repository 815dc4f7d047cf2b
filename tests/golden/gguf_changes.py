"""Changes of a GGUF file's metadata, and the logits that llama.cpp gives after them.

`gguf_vectors/NAME.json` and `.npy` hold for the golden model NAME, as a GGUF file, the last token's
logits after each change that llama.cpp takes, every fourth of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from fastllm.formats.checkpoint import open_checkpoint
from tests.golden.cases import case, materialize_gguf

FOLDER = Path(__file__).parent / "gguf_vectors"
NAMES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "falcon")
NUM_TOKENS, EVERY = 24, 4

Change = dict[str, Any]
FACTORS = "factors"  # not a key: with the two tables of LongRoPE
FREQS = "freqs"  # not a key: with a table of divisors
YARN: Change = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
LONGROPE: Change = {
    FACTORS: True,
    "rope.scaling.type": "longrope",
    "rope.scaling.original_context_length": 16,
}
CHANGES: tuple[Change, ...] = (
    {},
    {"rope.freq_base": 500.0},
    {"rope.freq_base_swa": 50.0},
    {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0},
    {"rope.scaling.type": "linear", "rope.scaling.attn_factor": 1.4},
    {"rope.scale_linear": 3.0},
    YARN,
    {**YARN, "rope.scaling.attn_factor": 0.7},
    {**YARN, "rope.scaling.yarn_ext_factor": 1.0},
    {**YARN, "rope.scaling.yarn_attn_factor": 1.3},
    {**YARN, "rope.scaling.yarn_log_multiplier": 1.0},
    {**YARN, "rope.scaling.finetuned": True},
    {**LONGROPE, "rope.scaling.attn_factor": 1.2},
    {FREQS: True},
    {"rope.scaling.alpha": 3.0},
    {"rope.dimension_sections": [2, 2, 2, 0]},
    {"context_length": 32},
    {"expert_count": 0},
    {"attention.layer_norm_rms_epsilon": 0.1},
    {"attention.layer_norm_epsilon": 0.1},
    {"attention.scale": 0.5},
    {"attention.causal": False},
    {"attention.clamp_kqv": 0.1},
    {"attention.max_alibi_bias": 8.0},
    {"attention.temperature_scale": 0.5},
    {"attention.sliding_window": 5},
    {"attention.sliding_window": 5, "attention.sliding_window_pattern": 2},
    {"attn_logit_softcapping": 1.0},
    {"final_logit_softcapping": 1.0},
    {"logit_scale": 0.5},
    {"embedding_scale": 2.0},
    {"residual_scale": 0.5},
    {"use_parallel_residual": True},
    {"hidden_activation": "relu"},
    *({key: None} for key in ("rope.dimension_count", "attention.key_length")),
    *({key: None} for key in ("attention.sliding_window", "attn_logit_softcapping")),
)


@dataclass(frozen=True)
class Changed:
    """A golden model as a GGUF file with a change; `logits` as llama.cpp gives them."""

    name: str
    change: Change
    logits: NDArray[np.float32]
    has_effect: bool

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """The sequence whose last token was asked for."""
        return case(self.name).token_ids[:NUM_TOKENS]


def changed() -> list[Changed]:
    """Return all that are stored."""
    result = []
    for name in NAMES:
        rows = np.load(FOLDER / f"{name}.npy")
        for entry in json.loads((FOLDER / f"{name}.json").read_text()):
            row = entry["row"]
            result.append(Changed(name, entry["change"], rows[row], row != 0))
    return result


def write(folder: Path, name: str, change: Change) -> Path:
    """Write the model with a change, so that llama.cpp takes it; return the file's path."""
    source = open_checkpoint(materialize_gguf(case(name), folder))
    architecture = source.metadata["general.architecture"]
    metadata = dict(source.metadata)
    if architecture.startswith("gemma"):
        del metadata[f"{architecture}.attention.scale"]  # llama.cpp does not read it
    metadata.update((f"{architecture}.{key}", value) for key, value in change.items())
    tensors = {tensor: source.read_float32(tensor) for tensor in source.tensors}
    pairs = source.metadata[f"{architecture}.rope.dimension_count"] // 2
    steps = np.arange(pairs, dtype=np.float32)
    if change.get(FACTORS):
        tensors["rope_factors_short.weight"] = 1 + steps / 10
        tensors["rope_factors_long.weight"] = 1.5 + steps * 7 / 10
    if change.get(FREQS):
        tensors["rope_freqs.weight"] = 1 + steps / 5
    path = folder / "changed.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("tokenizer.ggml.model", "no_vocab")
    for key, value in metadata.items():
        if value is None or key.startswith("general.") or key.endswith((FACTORS, FREQS)):
            continue
        writers = {
            bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
            str: writer.add_string, list: writer.add_array,
        }  # fmt: skip
        writers[type(value)](key, value)
    for tensor, values in tensors.items():
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
