"""GGUF files: metadata and where the tensors lie. Versions 2 and 3, little endian, split ones too.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastllm.errors import FormatError, ModelNotFoundError, ReadError, UnsupportedError
from fastllm.formats.checks import check_apart, regular_file_size, shown
from fastllm.formats.gguf_header import ARRAY, TYPE_NAMES, HeaderReader
from fastllm.formats.tensors import TensorInfo
from fastllm.quants.blocks import by_id

#: First four bytes of a GGUF file.
MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
_MAX_ELEMENTS = 1 << 60
_MAX_DIMS = 4
_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class GGUFFile:
    """What a GGUF file (all shards of a split one together) says about itself.

    No file stays open.

    Attributes
    ----------
    path : str
        As given.
    version : int
        2 or 3.
    metadata : dict of str to value
        bool, int, float, str; arrays of numbers are NumPy arrays, arrays of strings or of arrays
        are lists. Bytes of array strings that are not UTF-8 are kept by surrogateescape.
    types : dict of str to str
        Type of each value in the file: "uint32", "string", "array[string]", ... for a writer.
    tensors : dict of str to TensorInfo
        In file order.
    alignment : int
        Of tensor data, in bytes.
    shards : tuple of str
        Paths of all files, in order.
    """

    path: str
    version: int
    metadata: dict[str, Any]
    types: dict[str, str]
    tensors: dict[str, TensorInfo]
    alignment: int
    shards: tuple[str, ...]


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read the header of a GGUF file, and of its other shards if it is split.

    Raises
    ------
    ModelNotFoundError
        No such file, or a shard is missing; the text names it.
    FormatError
        The file is damaged, truncated, or contradicts itself.
    UnsupportedError
        Another version, big endian, or a tensor type that is not built.
    ReadError
        The disk refused.
    """
    first = _open_one(os.fspath(path))
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return first
    return _join(first, count)


def _open_one(path: str) -> GGUFFile:
    size = regular_file_size(path)
    try:
        with open(path, "rb", buffering=0) as file:
            return read_gguf(file, path, size)
    except OSError as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"{path}: cannot be opened: {error.strerror}") from error


def read_gguf(file: BinaryIO, path: str, size: int) -> GGUFFile:
    """Read the header of one GGUF file (one shard) of `size` bytes, open at its start.

    Errors are those of `open_gguf`; `path` is for them and for `TensorInfo`.
    """
    header = HeaderReader(file, path, size)
    if header.take(4, "the GGUF magic") != MAGIC:
        raise FormatError(f"{path}: not a GGUF file (no magic at its start)")
    version = header.u32("the version")
    if version not in (2, 3):
        if version and version & 0xFFFF == 0:
            raise UnsupportedError(
                f"{path}: big-endian GGUF is not built; convert it to little endian"
            )
        raise UnsupportedError(f"{path}: GGUF version {version} is not built; built: 2 and 3")
    # At least: name length 8, dimensions 4, type 4, offset 8; key length 8, type 4, value 1.
    num_tensors = header.count("the number of tensors", 24)
    num_keys = header.count("the number of keys", 13)
    metadata: dict[str, Any] = {}
    types: dict[str, str] = {}
    for index in range(num_keys):
        offset = header.offset
        key = header.name(f"key {index}")
        if key in metadata:
            raise header.error(f"key {shown(key)} appears twice", offset)
        what = f"key {shown(key)}"
        number = header.u32(f"type of {what}")
        if number == ARRAY:
            element, metadata[key] = header.array(what)
            types[key] = f"array[{element}]"
        else:
            metadata[key] = header.value(number, what)
            types[key] = TYPE_NAMES[number]
    alignment = _alignment(metadata, types, path)
    listed = [_tensor(header, index, alignment) for index in range(num_tensors)]
    data = -(-header.offset // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, kind, shape, relative, nbytes in listed:
        if name in tensors:
            raise FormatError(f"{path}: tensor {shown(name)} appears twice")
        if data + relative + nbytes > size:
            raise FormatError(
                f"{path}: tensor {shown(name)} lies at {data + relative} and takes {nbytes} bytes, "
                f"the file has {size}: truncated, get it again"
            )
        tensors[name] = TensorInfo(name, kind, shape, path, data + relative, nbytes)
    check_apart(path, tensors.values())
    return GGUFFile(path, version, metadata, types, tensors, alignment, (path,))


def _alignment(metadata: dict[str, Any], types: dict[str, str], path: str) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if types.get("general.alignment", "uint32") != "uint32" or (
        alignment < 1 or alignment & (alignment - 1)
    ):
        raise FormatError(
            f"{path}: general.alignment is {shown(str(alignment))}, not a power of two (uint32)"
        )
    return int(alignment)


def _tensor(
    header: HeaderReader, index: int, alignment: int
) -> tuple[str, str, tuple[int, ...], int, int]:
    """Return name, type, shape (slowest first), offset in the data part, and bytes of a tensor."""
    offset = header.offset
    name = header.name(f"name of tensor {index}")
    what = f"tensor {shown(name)}"
    num_dims = header.u32(f"dimensions of {what}")
    if num_dims > _MAX_DIMS:
        raise header.error(f"{what} has {num_dims} dimensions, at most {_MAX_DIMS} exist", offset)
    dims = [header.u64(f"dimensions of {what}") for _ in range(num_dims)]
    type_id = header.u32(f"type of {what}")
    relative = header.u64(f"offset of {what}")
    try:
        block = by_id(type_id)
    except UnsupportedError as error:
        raise UnsupportedError(f"{header.path}: {what} at offset {offset}: {error}") from None
    elements = 1
    for size in dims:
        if size > _MAX_ELEMENTS or elements * size > _MAX_ELEMENTS:
            # checked before a dimension of 0, which ggml allows, makes it small again
            raise header.error(f"{what} has more elements than any file", offset)
        elements *= size
    if (dims[0] if dims else 1) % block.elements:
        raise header.error(
            f"{what}: rows of {dims[0] if dims else 1} are no whole number of "
            f"{block.name} blocks ({block.elements})",
            offset,
        )
    if relative % alignment:
        raise header.error(f"{what} lies at {relative}, not a multiple of {alignment}", offset)
    nbytes = elements // block.elements * block.bytes
    return name, block.name, tuple(reversed(dims)), relative, nbytes


def _join(first: GGUFFile, count: int) -> GGUFFile:
    """Open the other shards of a split file and put all tensors together."""
    match = _SHARD_NAME.fullmatch(os.path.basename(first.path))
    if match is None or int(match["count"]) != count:
        raise FormatError(
            f"{first.path}: one of {count} shards, but not named NAME-00001-of-{count:05d}.gguf: "
            "give the shards back their names"
        )
    folder = os.path.dirname(first.path)
    paths = [
        os.path.join(folder, f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [os.path.basename(path) for path in paths if not os.path.exists(path)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ModelNotFoundError(
            f"{first.path}: {len(missing)} of {count} shards are missing beside it: "
            f"{', '.join(missing[:5])}{more}"
        )
    tensors: dict[str, TensorInfo] = {}
    head = first
    for number, path in enumerate(paths):
        shard = first if path == first.path else _open_one(path)
        said = (shard.metadata.get("split.no"), shard.metadata.get("split.count"))
        if said != (number, count):
            raise FormatError(
                f"{path}: says it is shard {said[0]!r} of {said[1]!r} (split.no, split.count), "
                f"but its name says {number} of {count}, counted from 0"
            )
        for name in shard.tensors.keys() & tensors.keys():
            raise FormatError(f"{path}: tensor {shown(name)} is in another shard too")
        tensors.update(shard.tensors)
        head = shard if number == 0 else head
    promised = head.metadata.get("split.tensors.count", len(tensors))
    if promised != len(tensors):
        raise FormatError(
            f"{first.path}: the shards hold {len(tensors)} tensors, "
            f"split.tensors.count says {promised}"
        )
    return GGUFFile(
        first.path, head.version, head.metadata, head.types, tensors, head.alignment, tuple(paths)
    )
