"""Take a quantized model's weights off their grid: the same function, other numbers.

    python -m bench.off_grid MODEL.gguf OUT.gguf

To say what a type costs one needs weights that were not rounded before, and the models at hand are.
Channels are scaled by random factors between 0.71 and 1.41: what reads a channel by such a factor,
what writes it by the inverse (norms for the stream between the layers, the rows of v for those of
the output, up for down). What is computed stays the same; the numbers, written in bfloat16, know
nothing of the types they came from. They spread a little more than a model's own, so a type costs
rather less than this says. Llamas, Qwens and Gemmas; a head that is the embedding gets a tensor of
its own, and the embedding, which is looked up in rows, stays as it is.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.formats.checkpoint import Checkpoint, open_checkpoint
from fastllm.formats.gguf_writer import NewTensor, Typed, write_gguf
from fastllm.quants import quantize

Array = NDArray[np.float32]
# Each matrix's columns: whose rows write what they read.
READS = {
    "attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm",
    "ffn_gate": "ffn_norm", "ffn_up": "ffn_norm",
    "attn_output": "attn_v", "ffn_down": "ffn_up", "output": "output_norm",
}  # fmt: skip


def factors(writer: str, size: int) -> Array:
    """Return the factors float32[size] of what `writer` writes; always the same ones."""
    random = np.random.default_rng(zlib.crc32(writer.encode()))
    return np.exp2(random.uniform(-0.5, 0.5, size)).astype(np.float32)


def scaled(source: Checkpoint, name: str) -> Array:
    """Return what a tensor of the model becomes."""
    is_tied_head = name == "output.weight" and name not in source.tensors
    values = source.read_float32("token_embd.weight" if is_tied_head else name)
    layer, _, part = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")
    at = f"{layer}." if layer else ""
    if part in READS and name.endswith(".weight"):
        writer = at + READS[part]
        size = source.tensors[f"{writer}.weight"].shape[0]
        by = factors(writer, size)
        if part == "attn_output":  # several heads read the values of one
            heads = f"{source.metadata['general.architecture']}.attention.head_count"
            num_heads, num_kv_heads = source.metadata[heads], source.metadata[f"{heads}_kv"]
            by = by.reshape(num_kv_heads, -1).repeat(num_heads // num_kv_heads, axis=0).ravel()
        values = values * by
    if part in READS.values():
        by = factors(at + part, values.shape[0])
        values = (values.T / by).T
    return np.ascontiguousarray(values)


def write(source: Checkpoint, path: str, kind: str = "bf16") -> None:
    """Write the model off its grid, its matrices in `kind`."""
    shapes = {name: info.shape for name, info in source.tensors.items()}
    shapes["output.weight"] = shapes["token_embd.weight"]
    types = {name: kind if len(shape) > 1 else "f32" for name, shape in shapes.items()}

    def chunks(name: str) -> Iterator[NDArray[np.uint8]]:
        yield quantize(types[name], scaled(source, name))

    metadata: dict[str, Any] = {
        key: Typed(source.metadata_types[key], value) for key, value in source.metadata.items()
    }
    new = [NewTensor(name, types[name], shape, chunks(name)) for name, shape in shapes.items()]
    write_gguf(path, metadata, new)


if __name__ == "__main__":
    write(open_checkpoint(sys.argv[1]), sys.argv[2])
