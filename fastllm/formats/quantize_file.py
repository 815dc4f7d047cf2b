"""Write a GGUF model with its matrices in another type, a few megabytes at a time."""

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
from fastllm.formats.mixtures import MIXTURES, is_quantized, type_of
from fastllm.formats.tensors import TensorInfo
from fastllm.quants import dequantize, quantize, row_bytes

# Elements converted at a time: 1 Mi are 4 MiB of float32.
_CHUNK = 1 << 20
_HEAD = "output.weight"


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
    rounded_twice : tuple of str
        Types of converted tensors that were quantized already.
    """

    num_tensors: int
    num_converted: int
    source_bytes: int
    file_bytes: int
    types: dict[str, int]
    rounded_twice: tuple[str, ...] = ()


def quantize_checkpoint(
    source: Checkpoint,
    path: str | os.PathLike[str],
    type: str,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizeStats:
    """Write `source` to a GGUF file with its weight matrices in `type`.

    Vectors, norms, routers and positions keep their type. The output matrix, which is the embedding
    where there is no other, gets at least six bits: it decides the logits directly. ``q4_k_m`` and
    ``q5_k_m`` are llama.cpp's mixtures: six bits for ``attn_v`` and ``ffn_down`` in the layers that
    matter most. Rows that are no whole number of 256 fall back as there (q4_k to q5_0, q5_k to
    q5_1, q6_k to q8_0), and become f16 where 32 does not divide them either. Quantized sources are
    read back to float32 first, which costs quality (`QuantizeStats.rounded_twice`); tensors that
    have the wanted type already are copied.

    Parameters
    ----------
    source : Checkpoint
        A GGUF model; of a Hugging Face folder what `conversion.as_gguf` makes of it.
    path : path
        Gets its name when whole; nothing is left behind after an error.
    type : str
        A key of `mixtures.MIXTURES`.
    progress : callable, optional
        Called with (bytes of the source done, bytes of the source) after each chunk.

    Raises
    ------
    UnsupportedError
        The source is a Hugging Face folder as it is.
    RequestError
        A type that is not offered, a source without tensors, or `path` is the source itself.
    FormatError
        A tensor holds NaN, infinity, or values beyond float16.
    ReadError, FastLLMError
        The disk refused.
    """
    if source.kind != "gguf":
        raise UnsupportedError(
            f"{source.path}: is no GGUF model; conversion.as_gguf makes one of it"
        )
    if type not in MIXTURES:
        raise RequestError(f"cannot quantize to {type!r}; can: {', '.join(MIXTURES)}")
    if not source.tensors:
        raise RequestError(f"{source.path}: has no tensors to quantize")
    files = {info.path for info in source.tensors.values()}
    if os.path.exists(path) and any(os.path.samefile(path, file) for file in files):
        raise RequestError(f"{os.fspath(path)}: is the source itself; write to another name")
    chosen = choose_types(source, type)
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
    again = {
        info.type
        for name, info in source.tensors.items()
        if chosen[name] != info.type and is_quantized(info.type)
    }
    return QuantizeStats(
        len(tensors),
        converted,
        total,
        size,
        dict(Counter(chosen.values())),
        tuple(sorted(again)),
    )


def choose_types(source: Checkpoint, type: str) -> dict[str, str]:
    """Return the type that each tensor gets in a file of `type` (rules: `mixtures.type_of`)."""
    architecture = str(source.metadata.get("general.architecture", ""))
    num_layers = source.metadata.get(f"{architecture}.block_count", 0)
    return {
        name: type_of(
            name,
            info.shape,
            info.type,
            MIXTURES[type],
            num_layers=num_layers if isinstance(num_layers, int) else 0,
            has_head=_HEAD in source.tensors,
            architecture=architecture,
        )
        for name, info in source.tensors.items()
    }


def _metadata(source: Checkpoint, type: str) -> dict[str, Any]:
    """Return the source's keys with their types, and what the new file is; no longer split."""
    metadata: dict[str, Any] = {
        key: Typed(source.metadata_types[key], value)
        for key, value in source.metadata.items()
        if not key.startswith("split.")
    }
    metadata["general.file_type"] = Typed("uint32", MIXTURES[type].file_type)
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
