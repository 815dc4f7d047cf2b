"""Take a quantized model's weights off their grid: the same function, other numbers.

    python -m bench.off_grid MODEL.gguf OUT.gguf

To say what a type costs one needs weights that were not rounded before, and the models at hand are.
The norms of a llama or qwen are folded into the matrices that follow them, and the stream between
the layers is turned by a random orthogonal matrix: what reads it is multiplied with that matrix,
what writes to it with its inverse. What is computed stays the same; the numbers, written in
bfloat16, know nothing of the types they came from. They are nearer to a normal distribution than a
model's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.formats.checkpoint import Checkpoint, open_checkpoint
from fastllm.formats.gguf_writer import NewTensor, Typed, write_gguf
from fastllm.quants import quantize

Array = NDArray[np.float32]
# The norm before each matrix that reads the stream.
READERS = {
    "attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm",
    "ffn_gate": "ffn_norm", "ffn_up": "ffn_norm",
}  # fmt: skip
WRITERS = ("attn_output", "ffn_down")


def orthogonal(size: int) -> Array:
    """Return a random float32[size, size] whose transpose is its inverse; always the same one."""
    q, r = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diag(r)), np.float32)


def turned(source: Checkpoint, name: str, turn: Array) -> Array:
    """Return what a tensor of the model becomes; a tied head gets a tensor of its own."""
    if name == "output.weight":
        stored = name if name in source.tensors else "token_embd.weight"
        return source.read_float32(stored) * source.read_float32("output_norm.weight") @ turn
    values = source.read_float32(name)
    layer, _, part = name.removesuffix(".weight").rpartition(".")
    if name == "token_embd.weight":
        return values @ turn
    if part in (*READERS.values(), "output_norm"):
        return np.ones_like(values)
    if part in READERS:
        return values * source.read_float32(f"{layer}.{READERS[part]}.weight") @ turn
    if part in WRITERS:
        return np.asarray(turn.T @ values)
    if part == "bias" and layer.rpartition(".")[2] in WRITERS:
        return values @ turn
    return values  # biases of q, k and v, and norms of their own


def write(source: Checkpoint, path: str, kind: str = "bf16") -> None:
    """Write the model off its grid, its matrices in `kind`."""
    turn = orthogonal(source.tensors["token_embd.weight"].shape[1])
    shapes = {name: info.shape for name, info in source.tensors.items()}
    shapes["output.weight"] = shapes["token_embd.weight"]
    types = {name: kind if len(shape) > 1 else "f32" for name, shape in shapes.items()}

    def chunks(name: str) -> Iterator[NDArray[np.uint8]]:
        yield quantize(types[name], np.ascontiguousarray(turned(source, name, turn)))

    metadata: dict[str, Any] = {
        key: Typed(source.metadata_types[key], value) for key, value in source.metadata.items()
    }
    new = [NewTensor(name, types[name], shape, chunks(name)) for name, shape in shapes.items()]
    write_gguf(path, metadata, new)


if __name__ == "__main__":
    write(open_checkpoint(sys.argv[1]), sys.argv[2])
