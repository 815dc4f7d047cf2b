"""Text from the command line, stdin and files: UTF-8, or a clear error."""

from __future__ import annotations

import sys
from pathlib import Path

from fastllm.errors import ReadError, RequestError


def argument(text: str) -> str:
    """Return a command-line argument, refused where it was not UTF-8.

    Raises
    ------
    RequestError
        Python had to escape bytes of it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text on the command line is not UTF-8 (at character {error.start}); convert it"
        ) from error
    return text


def stdin() -> str:
    """Return all of stdin without its last line feed.

    Raises
    ------
    RequestError
        It is not UTF-8.
    """
    return _decoded(sys.stdin.buffer.read(), "stdin").removesuffix("\n")


def file(path: str) -> str:
    """Return a whole text file as it is; "-" is stdin.

    Raises
    ------
    ReadError
        It cannot be read.
    RequestError
        It is not UTF-8.
    """
    if path == "-":
        return _decoded(sys.stdin.buffer.read(), "stdin")
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror}") from error
    return _decoded(raw, path)


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{where} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; "
            f"convert it, for example with iconv -t utf-8"
        ) from error
