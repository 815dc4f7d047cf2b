"""Tiny models for the step: golden ones with another config, and quantized ones of random bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.formats.checkpoint import Checkpoint, open_checkpoint
from fastllm.formats.gguf_writer import NewTensor, write_gguf
from fastllm.kernels.layouts import native_unit_columns
from fastllm.options import LoadOptions
from fastllm.step.runner import Runner
from tests.golden.cases import Case, case, materialize
from tests.kernels.samples import random_rows

VOCAB = 150


def runner_of(
    checkpoint: Checkpoint, *, num_blocks: int | None = None, progress: Any = None, **options: Any
) -> Runner:
    """A runner; `options` are those of `LoadOptions`."""
    return Runner(checkpoint, LoadOptions(**options), num_blocks=num_blocks, progress=progress)


def golden(name: str, folder: Path, **config: Any) -> tuple[Checkpoint, Case]:
    """A golden model with some keys of its config changed (none that decides a shape)."""
    model = case(name)
    model = replace(model, config={**model.config, **config})
    return open_checkpoint(materialize(model, folder)), model


def quantized(
    path: Path,
    type_: str,
    *,
    types: Mapping[str, str] | None = None,
    heads: tuple[int, int] | None = None,
    seed: int = 0,
    context: int = 256,
) -> Checkpoint:
    """A llama of two layers whose matrices are random blocks, in a GGUF file.

    Parameters
    ----------
    type_ : str
        Type of all matrices; it decides their sizes. Rows are an odd number of blocks where the
        type allows it, and panels are not full.
    types : mapping, optional
        Other types for some matrices, by the last part of their names ("attn_q").
    heads : (int, int), optional
        Query heads and head_dim; all share one kv head.
    """
    unit = native_unit_columns(type_)
    num_heads, head_dim = heads or {1: (3, 22), 32: (3, 32), 256: (4, 64)}[unit]
    hidden = num_heads * head_dim
    mlp = {1: 100, 32: 160, 256: 512}[unit]
    rng = np.random.default_rng(seed)
    tensors = []

    def matrix(name: str, rows: int, columns: int, size: float = 1.0) -> None:
        own = (types or {}).get(name.rsplit(".", 1)[-1], type_)
        data = random_rows(own, rows, columns, rng, size * columns**-0.5)
        tensors.append(NewTensor(f"{name}.weight", own, (rows, columns), data))

    def vector(name: str) -> None:
        values = (1 + 0.2 * rng.standard_normal(hidden)).astype(np.float32)
        tensors.append(NewTensor(f"{name}.weight", "f32", (hidden,), values))

    matrix("token_embd", VOCAB, hidden, hidden**0.5)
    for i in range(2):
        vector(f"blk.{i}.attn_norm")
        vector(f"blk.{i}.ffn_norm")
        matrix(f"blk.{i}.attn_q", hidden, hidden, 1.5)
        matrix(f"blk.{i}.attn_k", head_dim, hidden, 1.5)
        matrix(f"blk.{i}.attn_v", head_dim, hidden)
        matrix(f"blk.{i}.attn_output", hidden, hidden)
        matrix(f"blk.{i}.ffn_gate", mlp, hidden)
        matrix(f"blk.{i}.ffn_up", mlp, hidden)
        matrix(f"blk.{i}.ffn_down", hidden, mlp)
    vector("output_norm")
    matrix("output", VOCAB, hidden)
    metadata = {
        "general.architecture": "llama",
        "llama.vocab_size": VOCAB,
        "llama.context_length": context,
        "llama.embedding_length": hidden,
        "llama.block_count": 2,
        "llama.feed_forward_length": mlp,
        "llama.attention.head_count": num_heads,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
    }
    write_gguf(path, metadata, tensors)
    return open_checkpoint(path)
