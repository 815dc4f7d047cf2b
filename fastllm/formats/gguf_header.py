"""The part of a GGUF file before its tensor data, read with every number distrusted.

The file is read through a sliding buffer (a map would turn a truncated file into a bus error), and
no length is believed before it is known to fit in what is left of the file.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import FormatError, ReadError

_CHUNK = 1 << 20
#: A key or a tensor name is at most this long, in bytes (the format's own limit for keys).
MAX_NAME = 65535
#: A string value is at most this long: chat templates are below 1 MiB.
MAX_STRING = 64 << 20
#: Arrays of arrays of arrays ...: nobody writes more than two levels.
MAX_DEPTH = 4

STRING, ARRAY, BOOL = 8, 9, 7
#: Names of the value types, by their number in the file.
TYPE_NAMES = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array",
    "uint64", "int64", "float64",
)  # fmt: skip
#: Little-endian NumPy type of each fixed-size value type.
NUMBERS: dict[int, np.dtype[np.generic]] = {
    number: np.dtype("u1" if name == "bool" else name).newbyteorder("<")
    for number, name in enumerate(TYPE_NAMES)
    if name not in ("string", "array")
}
_U64 = struct.Struct("<Q")
_WORTH_CUTTING = 64  # strings in a row from which on NumPy's calls are cheaper than a loop


class HeaderReader:
    """Reads values one after the other; each read says what it is for.

    Parameters
    ----------
    file : binary file
        Open at its start, unbuffered or not.
    path : str
        For messages.
    size : int
        Bytes of the file.
    """

    def __init__(self, file: BinaryIO, path: str, size: int) -> None:
        self._file = file
        self.path = path
        self._size = size
        self._buffer = b""
        self._base = 0  # file offset of the buffer's first byte
        self._at = 0  # next byte, in the buffer

    @property
    def offset(self) -> int:
        """File offset of the next byte."""
        return self._base + self._at

    @property
    def remaining(self) -> int:
        """Bytes from here to the end of the file."""
        return self._size - self._base - self._at

    def error(self, problem: str, offset: int | None = None) -> FormatError:
        """Make an error that names the file and the place."""
        place = self.offset if offset is None else offset
        return FormatError(f"{self.path}: at offset {place}: {problem}")

    def _need(self, num_bytes: int, what: str) -> None:
        """Have the next `num_bytes` bytes in the buffer."""
        have = len(self._buffer) - self._at
        if have >= num_bytes:
            return
        if num_bytes > self.remaining:
            raise self.error(
                f"{what} needs {num_bytes} bytes, {self.remaining} are left: "
                "truncated or damaged, get the file again"
            )
        wanted = min(max(num_bytes - have, _CHUNK), self.remaining - have)
        try:
            more = self._file.read(wanted)
        except OSError as error:
            raise ReadError(f"{self.path}: cannot be read: {error.strerror}") from error
        if len(more) != wanted:
            raise ReadError(f"{self.path}: changed while it was read (at offset {self.offset})")
        self._buffer = self._buffer[self._at :] + more
        self._base += self._at
        self._at = 0

    def take(self, num_bytes: int, what: str) -> bytes:
        """Return the next `num_bytes` bytes."""
        self._need(num_bytes, what)
        start = self._at
        self._at = start + num_bytes
        return self._buffer[start : self._at]

    def u32(self, what: str) -> int:
        """Return an unsigned 32-bit number."""
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        """Return an unsigned 64-bit number."""
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str, least_bytes: int) -> int:
        """Return a count of things that take at least `least_bytes` bytes each."""
        offset = self.offset
        count = self.u64(what)
        if count * least_bytes > self.remaining:
            raise self.error(f"{what} is {count}, more than the file can hold", offset)
        return count

    def _text(self, what: str, limit: int) -> bytes:
        offset = self.offset
        length = self.u64(f"length of {what}")
        if length > limit or length > self.remaining:
            bound = min(limit, self.remaining)
            raise self.error(f"length of {what} is {length}, at most {bound} is possible", offset)
        return self.take(length, what)

    def name(self, what: str) -> str:
        """Return a key or tensor name; it must be UTF-8."""
        offset = self.offset
        try:
            return self._text(what, MAX_NAME).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 ({error.reason})", offset) from None

    def value(self, number: int, what: str) -> object:
        """Return the value of type `number` that follows.

        Scalars are Python's; a string that is not UTF-8 gets replacement characters, so that it can
        be shown. In arrays strings keep such bytes (surrogateescape): tokens must be exact.
        """
        if number == STRING:
            return self._text(what, MAX_STRING).decode("utf-8", "replace")
        if number == ARRAY:
            return self.array(what)[1]
        dtype = self._number(number, what)
        scalar = np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()
        return scalar != 0 if number == BOOL else scalar

    def array(self, what: str, depth: int = 1) -> tuple[str, object]:
        """Return the name of the element type and the elements of the array that follows."""
        if depth > MAX_DEPTH:
            raise self.error(f"{what} is nested more than {MAX_DEPTH} deep")
        number = self.u32(f"element type of {what}")
        length = f"length of {what}"
        if number == STRING:
            return "string", self._strings(self.count(length, 8), what)
        if number == ARRAY:
            return "array", [self.array(what, depth + 1)[1] for _ in range(self.count(length, 12))]
        dtype = self._number(number, what)
        count = self.count(length, dtype.itemsize)
        values = np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        return TYPE_NAMES[number], values != 0 if number == BOOL else values

    def _number(self, number: int, what: str) -> np.dtype[np.generic]:
        dtype = NUMBERS.get(number)
        if dtype is None:
            raise self.error(f"{what} has the unknown value type {number}")
        return dtype

    def _strings(self, count: int, what: str) -> list[str]:
        """Return `count` strings; a vocabulary has 10**5 of them."""
        strings: list[str] = []
        while len(strings) < count:
            self._at = _whole_strings(self._buffer, self._at, count - len(strings), strings)
            if len(strings) < count:  # one across the buffer's end
                where = f"string {len(strings)} of {what}"
                strings.append(str(self._text(where, MAX_STRING), "utf-8", "surrogateescape"))
        return strings


def _whole_strings(buffer: bytes, start: int, count: int, out: list[str]) -> int:
    """Append up to `count` strings that lie in `buffer` from `start` on; return where they end.

    A length below 256 shows: one byte, then seven zeros. A run of such places, each where the
    string of the one before ends, is cut at once; one by one costs ten times as much.
    """
    data = np.frombuffer(buffer, np.uint8)
    heads = _lengths(data[start:]) + start
    stops = np.flatnonzero(heads[:-1] + 8 + data[heads[:-1]] != heads[1:]) + 1
    bounds = [0, *stops.tolist(), len(heads)]
    wanted = len(out) + count
    for low, high in pairwise(bounds):
        if high - low < _WORTH_CUTTING or len(out) == wanted:
            continue
        start = _one_by_one(buffer, start, int(heads[low]), wanted, out)
        run = heads[low:high]
        run = run[np.searchsorted(run, start) :][: wanted - len(out) + 1]
        if len(run) > 1 and run[0] == start:
            texts = _cut(data[start : run[-1]], run[:-1] - start)
            if texts is not None:
                out += texts
                start = int(run[-1])
    return _one_by_one(buffer, start, len(buffer), wanted, out)


def _lengths(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the places of a byte and seven zeros."""
    count = max(len(data) - 7, 0)
    zero = data == 0
    found = np.ones(count, bool)
    for shift in range(1, 8):
        found &= zero[shift : shift + count]
    return np.flatnonzero(found)


def _cut(data: NDArray[np.uint8], heads: NDArray[np.int64]) -> list[str] | None:
    """Return the strings behind every length in `data`; None where one is empty or holds a zero."""
    kept = data != 0
    if np.count_nonzero(kept) != len(data) - 7 * len(heads):
        return None
    text = data.copy()
    text[heads] = 0
    return str(text[kept].tobytes(), "utf-8", "surrogateescape").split("\0")[1:]


def _one_by_one(buffer: bytes, start: int, stop: int, wanted: int, out: list[str]) -> int:
    """Append the strings that begin before `stop` until there are `wanted`; where they end."""
    append, unpack, limit = out.append, _U64.unpack_from, len(buffer)
    for _ in range(wanted - len(out)):
        begin = start + 8
        if start >= stop or begin > limit:
            break
        end = begin + unpack(buffer, start)[0]
        if end > limit:
            break
        append(str(buffer[begin:end], "utf-8", "surrogateescape"))
        start = end
    return int(start)
