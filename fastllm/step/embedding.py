"""Rows of the input embedding, read from the file when a token needs them.

A token needs one row of the table, so an untied table is never held in memory.
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


class RowReader:
    """Single rows of a matrix by number, as float32.

    Parameters
    ----------
    source : MatrixSource
        Files stay open until `close`, so a model survives the deletion of its file.
    """

    def __init__(self, source: MatrixSource) -> None:
        self.num_rows, self.columns = source.shape
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
        """Return float32[len(rows), columns]; ReadError if the file is cut short."""
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
