"""Read a bound model once and pack it as it arrives: one pass over the file, one copy in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import UnsupportedError
from fastllm.flash.feed import Feed, Job, slots_bytes
from fastllm.flash.reader import FileReader, ring_bytes
from fastllm.kernels.interpreter_codes import PACK_ARGS
from fastllm.kernels.layouts import LAYOUTS
from fastllm.kernels.moves import move_table
from fastllm.kernels.objects import callable_at
from fastllm.kernels.panels import ROWS, PanelLayout
from fastllm.memory.arena import Arena
from fastllm.models import roles
from fastllm.models.bind import BoundModel, MatrixSource
from fastllm.models.layers import Norm, walk
from fastllm.quants import dequantize, quantize
from fastllm.quants.blocks import row_bytes

CHUNK_BYTES = 1 << 20  # read at once: enough for a disk's full rate, and packed while in a cache
LEAST_THREADS = 8  # that read and pack: a disk wants several reads in flight
_FLOATS = ("f32", "f16", "bf16")

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix in panels.

    Attributes
    ----------
    type : str
        Weight format, a key of `LAYOUTS`.
    rows, columns : int
    spans : tuple of (int, int, int)
        First panel, panels, address, in order: where its panels lie. One span is the normal case.
    """

    type: str
    rows: int
    columns: int
    spans: tuple[tuple[int, int, int], ...]

    @property
    def layout(self) -> PanelLayout:
        """Layout of a panel."""
        return LAYOUTS[self.type]

    @property
    def num_panels(self) -> int:
        """Panels of 16 rows."""
        return -(-self.rows // ROWS)

    @property
    def padded_rows(self) -> int:
        """Rows that a product writes."""
        return self.num_panels * ROWS


@dataclass(frozen=True)
class _Chunk:
    """Some panels of one matrix and the file ranges that hold their rows, in order."""

    role: str
    source_type: str
    first_row: int
    num_rows: int
    pieces: tuple[tuple[str, int, int], ...]  # (path, offset, nbytes)


class Weights:
    """Every matrix and vector of a model, packed in one arena.

    Addresses are known at once; what lies there is, when `wait` has returned.

    Parameters
    ----------
    model : BoundModel
    pack : int
        Address of the packing kernel (``kernels.pack``).
    num_threads : int
        Threads that read and pack; at least `LEAST_THREADS` do.
    quant : str or None
        Format that float matrices are converted to while they are read ("q8_0", "q4_0", ...);
        matrices whose rows are no multiple of 32 stay as they are.

    Raises
    ------
    UnsupportedError
        A matrix of a type without kernels.
    BudgetError, ReadError, FormatError
        No memory; the file cannot be read; a vector holds NaN.
    """

    def __init__(
        self,
        model: BoundModel,
        pack: int,
        num_threads: int,
        quant: str | None = None,
    ) -> None:
        self._pack = callable_at(pack, PACK_ARGS)
        self._tables = {name: move_table(name) for name in LAYOUTS}
        sources = {role: model.matrix(role) for role in roles.multiplied(model.decoder)}
        types = packed_types(model, quant)
        # what is added to a norm's stored weight: gemma's 1 + w
        offsets = {norm.weight: norm.weight_offset for norm in walk(model.decoder, Norm)}
        vectors = {
            role: _padded(model.vector(role), offsets.get(role, 0.0)) for role in model.vector_roles
        }
        total = sum(packed_sizes(model, types))
        self.arena = Arena(total)
        self.nbytes = total
        self.matrices: dict[str, PackedMatrix] = {}
        self.vectors: dict[str, int] = {}
        for role, source in sources.items():
            rows, columns = source.shape
            size = LAYOUTS[types[role]].matrix_bytes(rows, columns)
            place = (0, -(-rows // ROWS), self.arena.alloc(size, 64))
            self.matrices[role] = PackedMatrix(types[role], rows, columns, (place,))
        for role, values in vectors.items():
            address = self.arena.alloc(values.nbytes, 64)
            self.arena.view(address, values.nbytes)[:] = values.view(np.uint8)
            self.vectors[role] = address
        chunks = [chunk for role, source in sources.items() for chunk in _chunks(role, source)]
        chunks.sort(key=lambda chunk: chunk.pieces[0])  # the disk likes file order
        plain = [chunk for chunk in chunks if self._is_plain(chunk)]
        self._others = [chunk for chunk in chunks if not self._is_plain(chunk)]
        jobs = [Job(*chunk.pieces[0], words) for chunk in plain for words in self._packing(chunk)]
        self._share = len(plain) / max(len(chunks), 1)  # of the load, that is the feed's
        memory = self.arena, self._tables
        self._feed = Feed(pack, jobs, max(num_threads, LEAST_THREADS), memory)

    def wait(self, progress: Progress | None = None) -> None:
        """Wait until every matrix is there; called once.

        Parameters
        ----------
        progress : callable, optional
            Called with (what, share done).

        Raises
        ------
        ReadError
            A file cannot be read.
        """

        def told(share: float) -> None:
            if progress:
                progress("reading weights", share)

        self._feed.wait(lambda share: told(share * self._share))
        self._read(self._others, lambda share: told(self._share + share * (1 - self._share)))
        told(1.0)

    def close(self) -> None:
        """Free the memory; addresses are dead afterwards."""
        self._feed.close()
        self.arena.close()

    # ------------------------------------------------------------------ reading
    def _is_plain(self, chunk: _Chunk) -> bool:
        """Whether the chunk can be packed as it is read."""
        return self.matrices[chunk.role].type == chunk.source_type and len(chunk.pieces) == 1

    def _read(self, chunks: list[_Chunk], progress: Callable[[float], None]) -> None:
        """Read what is put together or quantized before it is packed."""
        done = 0
        by_path: dict[str, list[_Chunk]] = {}
        for chunk in chunks:
            by_path.setdefault(chunk.pieces[0][0], []).append(chunk)
        for path, group in by_path.items():
            with FileReader(path) as reader:
                for chunk, rows in _stream(reader, path, group):
                    self._put(chunk, rows)
                    done += 1
                    progress(done / len(chunks))

    def _put(self, chunk: _Chunk, rows: NDArray[np.uint8]) -> None:
        matrix = self.matrices[chunk.role]
        if matrix.type != chunk.source_type:
            values = dequantize(chunk.source_type, rows.reshape(chunk.num_rows, -1))
            rows = quantize(matrix.type, values)
        for words in self._packing(chunk):
            job = np.array(words, np.int64)
            self._pack(job.ctypes.data, rows.ctypes.data)

    def _packing(self, chunk: _Chunk) -> Iterator[tuple[int, ...]]:
        """The packing kernel's words (`Packing`), a job for every span that the chunk touches."""
        matrix = self.matrices[chunk.role]
        layout = matrix.layout
        panel_bytes = layout.panel_bytes(matrix.columns)
        begin, panels = chunk.first_row // ROWS, -(-chunk.num_rows // ROWS)
        for start, count, address in matrix.spans:
            first, last = max(0, start - begin), min(panels, start + count - begin)
            if first < last:
                yield (
                    self._tables[matrix.type].ctypes.data,
                    row_bytes(matrix.type, matrix.columns),
                    chunk.num_rows,
                    layout.block_bytes,
                    layout.units(matrix.columns),
                    address + (begin - start) * panel_bytes,
                    first,
                    last,
                )


def reading_bytes(model: BoundModel, num_threads: int) -> int:
    """Bytes that the files are read through; a matrix in pieces may take as much again."""
    panel = max(
        ROWS * row_bytes(model.matrix(role).type, model.matrix(role).shape[1])
        for role in roles.multiplied(model.decoder)
    )
    chunk = max(CHUNK_BYTES, panel)
    return max(slots_bytes(chunk, max(num_threads, LEAST_THREADS)), ring_bytes(chunk))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def packed_sizes(model: BoundModel, types: Mapping[str, str]) -> Iterator[int]:
    """Bytes of every packed matrix and padded vector; `types` as `packed_types` returns them."""
    for role, type_ in types.items():
        yield _aligned(LAYOUTS[type_].matrix_bytes(*model.matrix(role).shape))
    for length in roles.vectors(model.decoder).values():
        yield _aligned(4 * length)


def packed_types(model: BoundModel, quant: str | None) -> dict[str, str]:
    """Weight format in memory of every matrix that is multiplied with, by role.

    Raises
    ------
    UnsupportedError
        A matrix of a type without kernels, named.
    """
    return {
        role: _packed_type(role, model.matrix(role), quant)
        for role in roles.multiplied(model.decoder)
    }


def _packed_type(role: str, source: MatrixSource, quant: str | None) -> str:
    type_ = source.type
    if quant is not None and type_ in _FLOATS and source.shape[1] % 32 == 0:
        type_ = quant
    if type_ not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise UnsupportedError(f"{role}: tensors of type {type_} have no kernel; built: {known}")
    return type_


def _padded(values: NDArray[np.float32], offset: float) -> NDArray[np.float32]:
    """A norm weight or bias, padded with zeros to 16 floats."""
    padded = np.zeros(-(-len(values) // 16) * 16, np.float32)
    padded[: len(values)] = values + np.float32(offset)
    return padded


def _chunks(role: str, source: MatrixSource) -> Iterator[_Chunk]:
    """Cut a matrix into runs of whole panels of about `CHUNK_BYTES`."""
    rows, columns = source.shape
    size = row_bytes(source.type, columns)
    step = max(1, CHUNK_BYTES // (size * ROWS)) * ROWS
    for first in range(0, rows, step):
        count = min(step, rows - first)
        yield _Chunk(role, source.type, first, count, tuple(_pieces(source, size, first, count)))


def _pieces(
    source: MatrixSource, size: int, first: int, count: int
) -> Iterator[tuple[str, int, int]]:
    """File ranges of rows [first, first + count), merged where they touch."""
    merged: list[tuple[str, int, int]] = []
    start = 0
    for segment in source.segments:
        low, high = max(first, start), min(first + count, start + segment.num_rows)
        if low < high:
            tensor = segment.tensor
            offset = tensor.offset + (segment.first_row + low - start) * size
            nbytes = (high - low) * size
            if merged and merged[-1][0] == tensor.path and sum(merged[-1][1:]) == offset:
                merged[-1] = (tensor.path, merged[-1][1], merged[-1][2] + nbytes)
            else:
                merged.append((tensor.path, offset, nbytes))
        start += segment.num_rows
    yield from merged


def _stream(
    reader: FileReader, path: str, chunks: list[_Chunk]
) -> Iterator[tuple[_Chunk, NDArray[np.uint8]]]:
    """The rows of every chunk, in order; a chunk of several pieces is put together first."""
    ranges, owners = [], []
    for chunk in chunks:
        if any(piece[0] != path for piece in chunk.pieces):
            continue
        for piece in chunk.pieces:
            ranges.append(piece[1:])
            owners.append(chunk)
    parts: list[NDArray[np.uint8]] = []
    longest = max((nbytes for _, nbytes in ranges), default=1)
    for index, view in reader.stream(ranges, max(longest, CHUNK_BYTES)):
        chunk = owners[index]
        if len(chunk.pieces) == 1:
            yield chunk, view
            continue
        parts.append(view.copy())
        if len(parts) == len(chunk.pieces):
            yield chunk, np.concatenate(parts)
            parts = []
    for chunk in chunks:  # pieces in several files: rare, read one by one
        if any(piece[0] != path for piece in chunk.pieces):
            yield chunk, np.concatenate([_read_piece(piece) for piece in chunk.pieces])


def _read_piece(piece: tuple[str, int, int]) -> NDArray[np.uint8]:
    path, offset, nbytes = piece
    with FileReader(path, num_threads=1) as reader:
        return reader.read(offset, nbytes)
