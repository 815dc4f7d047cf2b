"""JSON as model folders hold it, read without trust: size, depth, duplicates and digits bounded."""

from __future__ import annotations

import json
from typing import Any

from fastllm.errors import FormatError, ReadError
from fastllm.formats.checks import regular_file_size, shown

# config.json and index files are kilobytes; the index of the largest known model is some megabytes.
_MAX_BYTES = 64 << 20
# int() of a long string takes quadratic time; transformers writes "no limit" as 31 digits.
_MAX_DIGITS = 400


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object that must not name a key twice.

    Raises
    ------
    FormatError
        Not JSON, not an object, a key twice, or a number of absurd length; `where` begins the text.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise FormatError(f"{where}: key {shown(key)} appears twice")
                seen.add(key)
        return result

    def whole(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise FormatError(f"{where}: a number of {len(digits)} digits")
        return int(digits)

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_int=whole)
    except FormatError:
        raise
    except RecursionError:
        raise FormatError(f"{where}: JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise FormatError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: a JSON {type(value).__name__} where an object should be")
    return value


def read_object(path: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises
    ------
    ModelNotFoundError
        No such file.
    FormatError
        As `parse_object`, or the file is absurdly large.
    ReadError
        The disk refused.
    """
    size = regular_file_size(path)
    if size > _MAX_BYTES:
        raise FormatError(f"{path}: {size} bytes of JSON, at most {_MAX_BYTES} are read")
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES)
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_object(text, path)
