"""Write GGUF files (version 3, little endian, alignment 32), tensor data as it comes.

The file grows beside its final name and takes it only when it is whole and on the disk: under that
name there is never half a model.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import FastLLMError, RequestError
from fastllm.formats.checks import shown
from fastllm.formats.gguf import DEFAULT_ALIGNMENT, MAGIC
from fastllm.formats.gguf_header import ARRAY, BOOL, MAX_NAME, NUMBERS, STRING, TYPE_NAMES
from fastllm.quants.blocks import by_name, row_bytes

_MAX_DIMS = 4
_ALIGNMENT_KEY = "general.alignment"


@dataclass(frozen=True)
class Typed:
    """A metadata value with its type said, where inference would choose another.

    Attributes
    ----------
    type : str
        "uint16", "float64", "string", "array[int32]", ... as `gguf.GGUFFile.types` has them.
    value : value
        Python scalar, str, list or NumPy array.
    """

    type: str
    value: Any


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write.

    Attributes
    ----------
    name, type, shape
        As in `TensorInfo`: slowest axis first.
    chunks : array, or iterable of arrays
        The bytes of the file in order, in C-contiguous arrays of any type and any cut; read once.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    chunks: NDArray[Any] | Iterable[NDArray[Any]]


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Sequence[NewTensor],
) -> int:
    """Write a GGUF file and return its size in bytes.

    Parameters
    ----------
    path : path
        Replaced if it exists, once the new file is whole; of a link what it points to. What is no
        regular file (a device, a pipe) is refused: the rename would put a file in its place.
    metadata : mapping of str to value
        Inferred types: bool; int -> uint32, or int32, int64, uint64 where it does not fit;
        float -> float32; str; NumPy arrays of numbers as they are; lists by their elements
        (int -> int32, or int64; float or mixed -> float32; str; lists). Anything else: `Typed`.
        A ``general.alignment`` is set to 32.
    tensors : sequence of NewTensor
        Written in this order.

    Raises
    ------
    RequestError
        A value that GGUF cannot hold, or chunks that do not add up to their tensor.
    FormatError, UnsupportedError
        A shape that its type cannot have; a type that is not built.
    FastLLMError
        The disk refused (full, read-only, ...). Nothing is left behind.
    """
    path = os.fspath(path)
    header = _header(metadata, tensors)
    final = os.path.realpath(path) if os.path.islink(path) else path
    part = f"{final}.{secrets.token_hex(4)}.part"
    try:
        if os.path.lexists(final) and not os.path.isfile(final):
            raise FastLLMError(f"{path}: is no regular file; write to another name")
        # "x": whatever lies there already is not ours.
        with open(part, "xb") as file:
            file.write(header)
            for tensor in tensors:
                _write_tensor(file, tensor)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(part, final)
    except OSError as error:
        _remove(part)
        if isinstance(error, FastLLMError):  # from whoever makes the chunks
            raise
        shown = path or repr(path)
        raise FastLLMError(f"{shown}: cannot be written: {error.strerror}") from error
    except BaseException:
        _remove(part)
        raise
    _sync_folder(os.path.dirname(final) or ".")
    return size


def _remove(part: str) -> None:
    try:
        os.remove(part)
    except OSError:
        return  # never made, or the disk is gone: the first error is the one to tell


def _sync_folder(folder: str) -> None:
    """Put the new name on the disk too, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # not every system opens folders
    try:
        os.fsync(descriptor)
    except OSError:
        return  # nor syncs them
    finally:
        os.close(descriptor)


def _padding(offset: int) -> int:
    return -offset % DEFAULT_ALIGNMENT


def _nbytes(tensor: NewTensor) -> int:
    rows = 1
    for length in tensor.shape[:-1]:
        rows *= length
    return rows * row_bytes(tensor.type, tensor.shape[-1] if tensor.shape else 1)


def _header(metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> bytes:
    """Return everything before the first tensor's bytes, padded."""
    if _ALIGNMENT_KEY in metadata:
        metadata = {**metadata, _ALIGNMENT_KEY: DEFAULT_ALIGNMENT}
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts.append(_name(key, "key"))
        parts.append(_value(value, key))
    seen: set[str] = set()
    offset = 0
    for tensor in tensors:
        if tensor.name in seen:
            raise RequestError(f"tensor {shown(tensor.name)} is given twice")
        seen.add(tensor.name)
        if len(tensor.shape) > _MAX_DIMS or any(length < 1 for length in tensor.shape):
            raise RequestError(
                f"tensor {shown(tensor.name)}: GGUF cannot hold shape {tensor.shape}"
            )
        dims = tuple(reversed(tensor.shape))
        parts.append(_name(tensor.name, "tensor name"))
        parts.append(struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", by_name(tensor.type).ggml_id, offset))
        size = _nbytes(tensor)
        offset += size + _padding(size)
    header = b"".join(parts)
    return header + bytes(_padding(len(header)))


def _write_tensor(file: BinaryIO, tensor: NewTensor) -> None:
    chunks: Iterable[NDArray[Any]]
    chunks = [tensor.chunks] if isinstance(tensor.chunks, np.ndarray) else tensor.chunks
    written, size = 0, _nbytes(tensor)
    for chunk in chunks:
        written += chunk.nbytes
        if written <= size:
            file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
    if written != size:
        raise RequestError(
            f"tensor {shown(tensor.name)}: {written} bytes given, {tensor.type} {tensor.shape} "
            f"takes {size}"
        )
    file.write(bytes(_padding(size)))


def _text(text: str) -> bytes:
    # Array strings that were read by surrogateescape get their bytes back.
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise RequestError(f"{shown(text)} holds half a character (a lone surrogate)") from None
    return struct.pack("<Q", len(encoded)) + encoded


def _name(name: str, what: str) -> bytes:
    encoded = _text(name)
    if not 0 < len(encoded) - 8 <= MAX_NAME:
        raise RequestError(f"{what} {shown(name)}: 1 to {MAX_NAME} bytes are allowed")
    return encoded


def _value(value: Any, key: str) -> bytes:
    """Return type and bytes of a metadata value."""
    try:
        kind, value = (value.type, value.value) if isinstance(value, Typed) else _infer(value)
        if kind.startswith("array[") and kind.endswith("]"):
            return struct.pack("<I", ARRAY) + _array(kind[6:-1], value)
        number = TYPE_NAMES.index(kind)
        body = _text(value) if number == STRING else _number(number, value)
        return struct.pack("<I", number) + body
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, RequestError):
            raise RequestError(f"key {shown(key)}: {error}") from None
        raise RequestError(f"key {shown(key)}: GGUF cannot hold {shown(str(value))}") from None


def _number(number: int, value: Any) -> bytes:
    if number == BOOL:
        return bytes([bool(value)])
    dtype = NUMBERS[number]
    with np.errstate(over="ignore"):  # a float too large for float32 becomes infinite
        return np.array(value, dtype).tobytes()


def type_of_value(value: Any) -> str:
    """Return the GGUF type that `write_gguf` gives a metadata value.

    Raises
    ------
    TypeError, ValueError
        GGUF cannot hold it.
    """
    return value.type if isinstance(value, Typed) else _infer(value)[0]


def _infer(value: Any) -> tuple[str, Any]:
    """Return the GGUF type that a Python value gets, and the value."""
    if isinstance(value, np.generic):
        value = np.bool_(value) if value.dtype == np.bool_ else value
        return str(value.dtype), value.item()
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, int):
        return _integer_type((value,), ("uint32", "int32", "int64", "uint64")), value
    if isinstance(value, float):
        return "float32", value
    if isinstance(value, str):
        return "string", value
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return f"array[{value.dtype.name}]", value
    if isinstance(value, list | tuple):
        return f"array[{_element_type(value)}]", value
    raise TypeError(type(value))


def _integer_type(values: Sequence[int], candidates: tuple[str, ...]) -> str:
    for name in candidates:
        limits = np.iinfo(name)
        if all(limits.min <= value <= limits.max for value in values):
            return name
    raise ValueError("too large")


def _element_type(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values}
    if kinds <= {str}:  # an empty list too
        return "string"
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return _integer_type(values, ("int32", "int64", "uint64"))
    if kinds <= {int, float}:
        return "float32"
    if kinds <= {list, tuple, np.ndarray}:
        return "array"
    raise TypeError(kinds)


def _array(element: str, values: Any) -> bytes:
    """Return element type, count and bytes of an array."""
    number = TYPE_NAMES.index(element)
    head = struct.pack("<IQ", number, len(values))
    if number == STRING:
        return head + b"".join(map(_text, values))
    if number == ARRAY:
        inner = [_infer(value) for value in values]
        return head + b"".join(_array(kind[6:-1], value) for kind, value in inner)
    if number == BOOL:
        return head + np.array(values, np.bool_).tobytes()
    return head + _number(number, values)
