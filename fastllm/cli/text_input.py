"""Text from the command line, stdin and files: UTF-8, or a clear error."""

from __future__ import annotations

import os
import sys
from io import BufferedReader
from pathlib import Path
from typing import cast

from fastllm.arguments import shown
from fastllm.errors import ReadError, RequestError

_READ_BYTES = 1 << 16


def argument(text: str) -> str:
    """Return a command-line argument, refused where it was not UTF-8.

    Raises
    ------
    RequestError
        Python had to escape bytes of it.
    """
    try:
        # Under a locale without UTF-8 Python escapes every byte; the bytes decide, not the locale.
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        pass
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
    ReadError
        It cannot be read (closed, a folder, ...).
    RequestError
        It is not UTF-8.
    """
    return _decoded(_stdin_bytes(), "stdin").removesuffix("\n")


def file(path: str) -> str:
    """Return a whole text file as it is; "-" is stdin.

    Raises
    ------
    ReadError
        It cannot be read.
    RequestError
        It is not UTF-8.
    """
    if not path:
        raise ReadError("'' cannot be read: the name of the file is empty")
    if path == "-":
        return _decoded(_stdin_bytes(), "stdin")
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ReadError(f"{shown(path)} cannot be read: {error}") from error
    return _decoded(raw, path)


def _stdin_bytes() -> bytes:
    pieces = []
    try:
        # Piece by piece: one read() to the end would not see a Ctrl-C between two of its reads.
        buffer = cast(BufferedReader, sys.stdin.buffer)
        while piece := buffer.read1(_READ_BYTES):
            pieces.append(piece)
        return b"".join(pieces)
    except OSError as error:
        raise ReadError(f"stdin cannot be read: {error.strerror}") from error


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{where} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; "
            f"convert it, for example with iconv -t utf-8"
        ) from error
