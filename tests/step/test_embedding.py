"""Rows of a matrix straight from its files."""

import os

import numpy as np
import pytest

from fastllm.errors import ReadError
from fastllm.formats.tensors import TensorInfo
from fastllm.kernels.layouts import LAYOUTS
from fastllm.models.bind import MatrixSource, RowSegment
from fastllm.quants import dequantize, row_bytes
from fastllm.step.embedding import RowReader
from tests.kernels.samples import random_rows

COLUMNS = 512


def stored(path, type_, num_rows, seed):
    """A file of some bytes and then a matrix; its TensorInfo and values."""
    rows = random_rows(type_, num_rows, COLUMNS, np.random.default_rng(seed))
    path.write_bytes(b"\xff" * 77 + rows.tobytes())
    tensor = TensorInfo(path.name, type_, (num_rows, COLUMNS), str(path), 77, rows.nbytes)
    return tensor, dequantize(type_, rows)


@pytest.fixture
def opened():
    readers = []

    def open_(*segments):
        tensor = segments[0].tensor
        shape = (sum(segment.num_rows for segment in segments), COLUMNS)
        readers.append(RowReader(MatrixSource(tensor.type, shape, segments)))
        return readers[-1]

    yield open_
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("type_", LAYOUTS)
def test_rows_of_every_type(opened, tmp_path, type_):
    tensor, values = stored(tmp_path / "a", type_, 20, 0)
    rows = np.array([19, 0, 7, 7, 3], np.int32)
    found = opened(RowSegment(tensor, 0, 20)).read(rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values[rows])


def test_rows_of_several_pieces(opened, tmp_path):
    """Pieces of one tensor and of another file, put together in order."""
    a, a_values = stored(tmp_path / "a", "q8_0", 20, 0)
    b, b_values = stored(tmp_path / "b", "q8_0", 10, 1)
    reader = opened(
        RowSegment(a, 15, 5), RowSegment(b, 2, 3), RowSegment(a, 0, 4), RowSegment(b, 9, 1)
    )
    expected = np.concatenate([a_values[15:], b_values[2:5], a_values[:4], b_values[9:]])
    rows = np.random.default_rng(0).permutation(13).astype(np.int32)
    np.testing.assert_array_equal(reader.read(rows), expected[rows])


@pytest.mark.parametrize("row", [-1, 20])
def test_no_such_row(opened, tmp_path, row):
    tensor, _ = stored(tmp_path / "a", "q4_0", 20, 0)
    with pytest.raises(ReadError, match=f"row {row}"):
        opened(RowSegment(tensor, 0, 20)).read(np.array([row], np.int32))


@pytest.mark.parametrize("left", [0, 1, 500])
def test_a_file_cut_short_under_us(opened, tmp_path, left):
    tensor, values = stored(tmp_path / "a", "f16", 20, 0)
    reader = opened(RowSegment(tensor, 0, 20))
    size = row_bytes("f16", COLUMNS)
    os.truncate(tmp_path / "a", 77 + 10 * size + left)
    np.testing.assert_array_equal(reader.read(np.array([9], np.int32)), values[9:10])
    with pytest.raises(ReadError, match="row 10 is cut short"):
        reader.read(np.array([3, 10], np.int32))


def test_a_file_that_is_gone(tmp_path):
    tensor, _ = stored(tmp_path / "a", "f16", 20, 0)
    (tmp_path / "a").unlink()
    source = MatrixSource("f16", (20, COLUMNS), (RowSegment(tensor, 0, 20),))
    with pytest.raises(ReadError, match="No such file"):
        RowReader(source)


def test_rows_of_the_last_tokens_are_kept_and_no_more(tmp_path, monkeypatch):
    """One at a time, as answers read them; the file is asked again for what was forgotten."""
    tensor, values = stored(tmp_path / "a", "q8_0", 20, 0)
    reader = RowReader(
        MatrixSource(tensor.type, (20, COLUMNS), (RowSegment(tensor, 0, 20),)), 3 * 4 * COLUMNS
    )
    asked, pread = [], os.pread
    monkeypatch.setattr(
        os, "pread", lambda fd, size, at: asked.append((at - 77) // size) or pread(fd, size, at)
    )
    for row in (1, 2, 1, 3, 2, 4, 3, 1, 4):
        found = reader.read(np.array([row], np.int32))
        np.testing.assert_array_equal(found, values[row : row + 1])
    assert asked == [1, 2, 3, 4, 1]
    reader.read(np.array([3, 4], np.int32))
    assert asked[5:] == [3, 4]
    reader.close()


def test_the_file_may_go_once_it_is_open(opened, tmp_path):
    tensor, values = stored(tmp_path / "a", "f16", 20, 0)
    reader = opened(RowSegment(tensor, 0, 20))
    (tmp_path / "a").unlink()
    np.testing.assert_array_equal(reader.read(np.array([4], np.int32)), values[4:5])


def test_files_are_closed(opened, tmp_path):
    tensor, _ = stored(tmp_path / "a", "f16", 20, 0)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if before is None:
        pytest.skip("no /proc here")
    reader = opened(RowSegment(tensor, 0, 10), RowSegment(tensor, 10, 10))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
    reader.close()
