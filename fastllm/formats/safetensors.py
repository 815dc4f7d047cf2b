"""Safetensors files: where the tensors lie; one file, or several named by an index.

Format: https://github.com/huggingface/safetensors#format. A file is the length of its header (u64,
little endian), the header (a JSON object), and the bytes of all tensors without a hole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastllm.errors import FormatError, ModelNotFoundError, ReadError, UnsupportedError
from fastllm.formats.checks import regular_file_size, shown
from fastllm.formats.json_files import parse_object, read_object
from fastllm.formats.tensors import TensorInfo

#: The format's own limit on the header.
MAX_HEADER = 100_000_000
_MAX_DIMS = 32
_MAX_BYTES = 2**60  # of a tensor: its bits still fit 64-bit numbers

#: Bytes of an element of each dtype. Those that `quants` knows can be read as float32; the others
#: are described only.
DTYPES: dict[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class SafetensorsFile:
    """What a safetensors file (or all shards of an index) says about itself; no file stays open.

    Attributes
    ----------
    path : str
        As given.
    metadata : dict of str to str
        The ``__metadata__`` entry (of the first shard).
    tensors : dict of str to TensorInfo
        In file order. `TensorInfo.type` is the dtype in lower case.
    shards : tuple of str
        Paths of all files, sorted.
    """

    path: str
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    shards: tuple[str, ...]


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Read the header of one safetensors file.

    Raises
    ------
    ModelNotFoundError
        No such file.
    FormatError
        The file is damaged, truncated, or contradicts itself.
    UnsupportedError
        A dtype that is not known.
    ReadError
        The disk refused.
    """
    path = os.fspath(path)
    size = regular_file_size(path)
    try:
        with open(path, "rb", buffering=0) as file:
            return read_safetensors(file, path, size)
    except OSError as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from error


def read_safetensors(file: BinaryIO, path: str, size: int) -> SafetensorsFile:
    """Read the header of one safetensors file of `size` bytes, open at its start.

    Errors are those of `open_safetensors`; `path` is for them and for `TensorInfo`.
    """
    start = file.read(8) or b""
    if len(start) < 8:
        raise FormatError(f"{path}: {size} bytes are no safetensors file")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER or length > size - 8:
        raise FormatError(
            f"{path}: the header claims {length} bytes, at most "
            f"{min(MAX_HEADER, size - 8)} are possible: truncated or no safetensors file"
        )
    text = file.read(length) or b""
    if len(text) < length:
        raise ReadError(f"{path}: changed while it was read")
    if text[:1] != b"{":
        raise FormatError(f"{path}: the header does not begin with '{{': no safetensors file")
    header = parse_object(text, f"{path}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: __metadata__ is not an object of strings")
    found = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    _check_filled(path, found, 8 + length, size)
    return SafetensorsFile(path, metadata, {tensor.name: tensor for tensor in found}, (path,))


def _whole_numbers(value: Any, where: str) -> list[int]:
    # bool is an int for isinstance, and "true" is no size.
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise FormatError(f"{where} is not a list of whole numbers")
    return value


def _tensor(path: str, name: str, entry: Any, data: int) -> TensorInfo:
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} is not described by dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str):
        raise FormatError(f"{where}: dtype is not a string")
    if dtype not in DTYPES:
        raise UnsupportedError(f"{where} has dtype {shown(dtype)}; known: {', '.join(DTYPES)}")
    shape = _whole_numbers(entry["shape"], f"{where}: shape")
    if len(shape) > _MAX_DIMS:
        raise FormatError(f"{where} has {len(shape)} dimensions, at most {_MAX_DIMS} are read")
    offsets = _whole_numbers(entry["data_offsets"], f"{where}: data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: data_offsets are not a begin and an end")
    begin, end = offsets
    nbytes = DTYPES[dtype]
    for length in shape:
        # checked before a zero makes it small again: no reader can count so far
        if length > _MAX_BYTES or nbytes * length > _MAX_BYTES:
            raise FormatError(f"{where}: its shape is larger than any file")
        nbytes *= length
    if nbytes != end - begin:
        raise FormatError(
            f"{where}: shape and dtype make {nbytes} bytes, data_offsets {end - begin}"
        )
    return TensorInfo(name, dtype.lower(), tuple(shape), path, data + begin, nbytes)


def _check_filled(path: str, tensors: list[TensorInfo], data: int, size: int) -> None:
    """Check that the tensors fill the file from `data` to its end, no hole and no overlap."""
    end = data
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            problem = "overlaps the one before it" if tensor.offset < end else "follows a hole"
            raise FormatError(f"{path}: tensor {shown(tensor.name)} {problem} at offset {end}")
        end += tensor.nbytes
    if end > size:
        raise FormatError(
            f"{path}: tensors end at {end}, the file at {size}: truncated, get it again"
        )
    if end < size:
        raise FormatError(f"{path}: {size - end} bytes behind the last tensor belong to none")


def open_safetensors_index(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open all files named by a ``model.safetensors.index.json``.

    Raises
    ------
    ModelNotFoundError
        A file is missing; the text names it.
    FormatError
        The index or a file is damaged, or they contradict each other.
    UnsupportedError, ReadError
        As `open_safetensors`.
    """
    path = os.fspath(path)
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path}: no weight_map in it")
    for name, file_name in weight_map.items():
        # Only names of files beside the index: a path could lead anywhere.
        if (
            not isinstance(file_name, str)
            or file_name in ("", ".", "..")
            or any(mark in file_name for mark in "/\\\0")
        ):
            raise FormatError(f"{path}: tensor {shown(name)} lies in no file beside the index")
    folder = os.path.dirname(path)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ModelNotFoundError(
            f"{path}: {len(missing)} of {len(names)} shards are missing beside it: "
            f"{', '.join(map(shown, missing[:5]))}{more}"
        )
    shards = {name: open_safetensors(os.path.join(folder, name)) for name in names}
    tensors: dict[str, TensorInfo] = {}
    for name, file_name in weight_map.items():
        tensor = shards[file_name].tensors.get(name)
        if tensor is None:
            raise FormatError(
                f"{shards[file_name].path}: tensor {shown(name)} is not in it, as {path} says"
            )
        tensors[name] = tensor
    paths = tuple(shard.path for shard in shards.values())
    return SafetensorsFile(path, shards[names[0]].metadata, tensors, paths)
