"""Rows of the input embedding, read from the file when a token needs them.

A token needs one row of the table, so an untied table is never held in memory. Rows of the last
tokens are kept as floats: text repeats itself, and reading one row costs 70 us in the middle of
generation (10 us in a loop of its own: the weights of a step leave no line of code in the caches).
"""

from __future__ import annotations

import os
import weakref

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import ReadError
from fastllm.models.bind import MatrixSource
from fastllm.quants import dequantize
from fastllm.quants.blocks import row_bytes

KEPT_BYTES = 2 << 20


class RowReader:
    """Single rows of a matrix by number, as float32.

    Parameters
    ----------
    source : MatrixSource
        Files stay open until `close`, so a model survives the deletion of its file.
    kept_bytes : int
        Rows read one at a time are kept, up to so many bytes.
    """

    def __init__(self, source: MatrixSource, kept_bytes: int = KEPT_BYTES) -> None:
        self.num_rows, self.columns = source.shape
        self._kept: dict[int, NDArray[np.float32]] = {}  # the oldest first
        self._max_kept = kept_bytes // (4 * self.columns)
        self._type = source.type
        self._row_bytes = row_bytes(source.type, self.columns)
        self._files: dict[str, int] = {}
        self._close = weakref.finalize(self, _close_all, self._files)
        self._segments = []
        start = 0
        for segment in source.segments:
            tensor = segment.tensor
            fd = self._files.get(tensor.path)
            if fd is None:
                try:
                    fd = os.open(tensor.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                except OSError as error:
                    raise ReadError(f"{tensor.path}: {error.strerror}") from error
                self._files[tensor.path] = fd
            offset = tensor.offset + (segment.first_row - start) * self._row_bytes
            self._segments.append((start, start + segment.num_rows, fd, offset, tensor.path))
            start += segment.num_rows

    def read(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return float32[len(rows), columns], read only; ReadError if the file is cut short."""
        if len(rows) != 1 or not self._max_kept:
            return self._read(rows)
        row = int(rows[0])
        found = self._kept.get(row)
        if found is None:
            found = self._read(rows)
            if len(self._kept) >= self._max_kept:
                del self._kept[next(iter(self._kept))]
            self._kept[row] = found
        return found

    def _read(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        size = self._row_bytes
        raw = bytearray()
        for row in rows.tolist():
            if not 0 <= row < self.num_rows:
                raise ReadError(f"row {row} of an embedding with {self.num_rows} rows")
            for start, stop, fd, offset, path in self._segments:
                if start <= row < stop:
                    piece = os.pread(fd, size, offset + row * size)
                    if len(piece) != size:
                        raise ReadError(f"{path}: row {row} is cut short; was the file replaced?")
                    raw += piece
                    break
        packed = np.frombuffer(raw, np.uint8).reshape(len(rows), size)
        return dequantize(self._type, packed)

    def close(self) -> None:
        """Close the files; so does dropping the reader."""
        self._close()


def _close_all(files: dict[str, int]) -> None:
    for fd in files.values():
        os.close(fd)
    files.clear()
