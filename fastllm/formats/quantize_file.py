"""Rewrite a GGUF model with its matrices in another type, a few megabytes at a time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import FormatError, RequestError, UnsupportedError
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.checks import shown
from fastllm.formats.gguf_writer import NewTensor, Typed, write_gguf
from fastllm.formats.tensors import TensorInfo
from fastllm.quants import BLOCKS, dequantize, quantize, row_bytes

#: ``general.file_type`` of each type that a model can be rewritten in.
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32,
}  # fmt: skip

# Elements converted at a time: 1 Mi are 4 MiB of float32.
_CHUNK = 1 << 20
_FLOATS = ("f32", "f16", "bf16", "f64")
# Matrices by shape that are not multiplied as weights: routers choose experts and positions are
# added, so both are small and sensitive; llama.cpp leaves them too.
_KEPT_PARTS = ("ffn_gate_inp", "position_embd", "token_types", "ssm_conv1d", "_norm")
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"


@dataclass(frozen=True)
class QuantizeStats:
    """What a rewrite did.

    Attributes
    ----------
    num_tensors, num_converted : int
    source_bytes, file_bytes : int
        Bytes of the source's tensors; size of the new file.
    types : dict of str to int
        Number of tensors of each type in the new file.
    """

    num_tensors: int
    num_converted: int
    source_bytes: int
    file_bytes: int
    types: dict[str, int]


def quantize_checkpoint(
    source: Checkpoint,
    path: str | os.PathLike[str],
    type: str,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizeStats:
    """Write `source` to a GGUF file with its weight matrices in `type`.

    Vectors, norms, routers and positions keep their type. A matrix whose rows are not whole blocks
    becomes f16 (unless it has 16 bits or fewer already). The output matrix, which is the embedding
    where there is no other, gets at least q8_0: it decides the logits directly, and llama.cpp keeps
    it at six bits or more for the same reason. Quantized sources are read back to float32 first,
    which costs quality; tensors that have the wanted type already are copied.

    Parameters
    ----------
    source : Checkpoint
        A GGUF model.
    path : path
        Gets its name when whole; nothing is left behind after an error.
    type : str
        A key of `FILE_TYPES`.
    progress : callable, optional
        Called with (bytes of the source done, bytes of the source) after each chunk.

    Raises
    ------
    UnsupportedError
        The source is a Hugging Face folder.
    RequestError
        A type that is not offered, a source without tensors, or `path` is the source itself.
    FormatError
        A tensor holds NaN, infinity, or values beyond float16.
    ReadError, FastLLMError
        The disk refused.
    """
    if source.kind != "gguf":
        raise UnsupportedError(f"{source.path}: only GGUF files can be rewritten yet")
    if type not in FILE_TYPES:
        raise RequestError(f"cannot quantize to {type!r}; can: {', '.join(FILE_TYPES)}")
    if not source.tensors:
        raise RequestError(f"{source.path}: has no tensors to quantize")
    files = {info.path for info in source.tensors.values()}
    if os.path.exists(path) and any(os.path.samefile(path, file) for file in files):
        raise RequestError(f"{os.fspath(path)}: is the source itself; write to another name")
    chosen = {name: choose_type(info, source, type) for name, info in source.tensors.items()}
    total = sum(info.nbytes for info in source.tensors.values())
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    tensors = [
        NewTensor(name, chosen[name], info.shape, _convert(source, info, chosen[name], advance))
        for name, info in source.tensors.items()
    ]
    size = write_gguf(path, _metadata(source, type), tensors)
    converted = sum(chosen[name] != info.type for name, info in source.tensors.items())
    return QuantizeStats(len(tensors), converted, total, size, dict(Counter(chosen.values())))


def choose_type(info: TensorInfo, source: Checkpoint, type: str) -> str:
    """Return the type that a tensor gets in a file of `type` (rules: `quantize_checkpoint`)."""
    is_matrix = len(info.shape) >= 2 and info.name.endswith(".weight")
    if not is_matrix or any(part in info.name for part in _KEPT_PARTS):
        return info.type
    if info.type not in BLOCKS or (info.type.startswith("i") and not info.type.startswith("iq")):
        return info.type
    head = _HEAD if _HEAD in source.tensors else _EMBEDDING
    if info.name == head and type not in _FLOATS:
        type = "q8_0"
    if info.shape[-1] % BLOCKS[type].elements:
        return "f16" if info.type in ("f32", "f64") else info.type
    return type


def _metadata(source: Checkpoint, type: str) -> dict[str, Any]:
    """Return the source's keys with their types, and what the new file is; no longer split."""
    metadata: dict[str, Any] = {
        key: Typed(source.metadata_types[key], value)
        for key, value in source.metadata.items()
        if not key.startswith("split.")
    }
    metadata["general.file_type"] = Typed("uint32", FILE_TYPES[type])
    metadata["general.quantization_version"] = Typed("uint32", 2)
    return metadata


def _convert(
    source: Checkpoint, info: TensorInfo, type: str, advance: Callable[[int], None]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a tensor in its new type, some rows at a time."""
    row_elements = info.shape[-1] if info.shape else 1
    size = row_bytes(info.type, row_elements)
    num_rows = info.nbytes // size
    step = max(1, _CHUNK // row_elements)
    for start in range(0, num_rows, step):
        raw = source.read_rows(info.name, start, min(step, num_rows - start))
        if type != info.type:
            values = dequantize(info.type, raw)
            _check_values(values, source, info, start, type)
            advance(raw.nbytes)
            yield quantize(type, values)
        else:
            advance(raw.nbytes)
            yield raw


def _check_values(
    values: NDArray[np.float32], source: Checkpoint, info: TensorInfo, start: int, type: str
) -> None:
    """Refuse what the new type would turn into NaN or infinity without a word."""
    limit = np.finfo(np.float32 if type in ("f32", "bf16") else np.float16).max
    low, high = values.min(), values.max()  # a NaN wins both
    if not (low >= -limit and high <= limit):
        raise FormatError(
            f"{source.path}: tensor {shown(info.name)}, rows from {start} on: holds NaN, infinity "
            f"or a value beyond {limit:.6g}, which {type} cannot hold"
        )
