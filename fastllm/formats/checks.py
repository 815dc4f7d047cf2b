"""What every reader checks: a regular file, names fit for a message, tensors apart and inside."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from fastllm.errors import FormatError, ModelNotFoundError, ReadError
from fastllm.formats.tensors import TensorInfo

_SHOWN = 80


def shown(name: str) -> str:
    """Quote a name from a file for a one-line message: escapes kept visible, long ones cut."""
    # repr() escapes line ends, terminal controls and lone surrogates alike.
    return repr(name) if len(name) <= _SHOWN else repr(name[:_SHOWN]) + "..."


def regular_file_size(path: str) -> int:
    """Return the size of a regular file in bytes.

    Raises
    ------
    ModelNotFoundError
        There is no such file, or it is something else (a pipe, a device, a folder).
    ReadError
        The system does not let us look at it.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise ReadError(f"{path}: cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a path with a null byte
        raise ModelNotFoundError(f"{path!r}: not a path: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelNotFoundError(f"{path}: not a regular file")
    return status.st_size


def read_start(path: str, num_bytes: int) -> bytes:
    """Return at most the first `num_bytes` bytes of a regular file."""
    regular_file_size(path)
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(num_bytes) or b""
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from error


def check_apart(path: str, tensors: Iterable[TensorInfo]) -> None:
    """Raise `FormatError` if two tensors of one file share bytes."""
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset < end:
            raise FormatError(
                f"{path}: tensors {shown(before)} and {shown(tensor.name)} overlap "
                f"at offset {tensor.offset}"
            )
        end, before = tensor.offset + tensor.nbytes, tensor.name
