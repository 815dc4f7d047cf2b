"""FileReader: the bytes of the file in the order asked, or an error that says where."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm.errors import ReadError
from fastllm.flash.reader import ALIGN, FileReader, _Ring

SIZE = 3 * (1 << 20) + 1234
CONTENT = random.Random(0).randbytes(SIZE)

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader") / "model.gguf"
    path.write_bytes(CONTENT)
    return path


def evict(path: Path) -> None:
    """Drop the file from the page cache, so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):
        fd = os.open(path, os.O_RDWR)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


ranges_in_file = st.lists(
    st.integers(0, SIZE).flatmap(
        lambda offset: st.tuples(st.just(offset), st.integers(0, min(70_000, SIZE - offset)))
    ),
    max_size=40,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ranges=ranges_in_file,
    slack=st.integers(0, 5000),
    num_slots=st.integers(1, 5),
    num_threads=st.integers(1, 8),
    cold=st.booleans(),
)
def test_any_ranges(implementation, file, ranges, slack, num_slots, num_threads, cold) -> None:
    if cold:
        evict(file)
    slot = max([1, *(nbytes for _, nbytes in ranges)]) + slack
    with FileReader(file, num_threads, backend=implementation) as reader:
        seen = []
        for index, chunk in reader.stream(ranges, slot, num_slots):
            offset, nbytes = ranges[index]
            assert chunk.tobytes() == CONTENT[offset : offset + nbytes]
            seen.append(index)
    assert seen == list(range(len(ranges)))


@pytest.mark.parametrize("cold", [True, False])
def test_large_ranges_are_cut_into_requests(implementation, file, cold: bool) -> None:
    if cold:
        evict(file)
    ranges = [(0, SIZE), (1, SIZE - 1), (ALIGN - 1, 2 << 20), (SIZE - 1, 1), (SIZE, 0)] * 3
    with FileReader(file, backend=implementation) as reader:
        for index, chunk in reader.stream(ranges):
            offset, nbytes = ranges[index]
            assert chunk.tobytes() == CONTENT[offset : offset + nbytes]


def test_chunks_are_read_only_and_aligned_as_in_the_file(implementation, file) -> None:
    with FileReader(file, backend=implementation) as reader:
        _, chunk = next(iter(reader.stream([(12_345, 100)])))
        assert chunk.dtype == np.uint8
        assert chunk.ctypes.data % ALIGN == 12_345 % ALIGN
        with pytest.raises(ValueError, match="read-only"):
            chunk[0] = 1


def test_without_direct_reads(implementation, file, monkeypatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    evict(file)
    with FileReader(file, backend=implementation) as reader:
        assert not reader.direct
        ((_, chunk),) = reader.stream([(77, 2_000_000)])
        assert chunk.tobytes() == CONTENT[77:2_000_077]
        with pytest.raises(ReadError, match="the file ends at"):
            list(reader.stream([(SIZE - 5, 6)]))


def test_reads_past_the_cache_leave_no_trace(implementation, file) -> None:
    """A model larger than memory must not push everything else out while it streams."""
    from fastllm.flash.pure import in_cache

    with FileReader(file, backend=implementation) as reader:
        reader.read(0, SIZE)
        if not reader.direct or not in_cache(reader._fd, 0, SIZE):
            pytest.skip("needs O_DIRECT and cachestat")
        evict(file)
        if in_cache(reader._fd, 0, SIZE):
            pytest.skip("this file system keeps its pages")
        for _ in reader.stream([(0, SIZE)]):
            pass
        assert not any(in_cache(reader._fd, at, 1) for at in range(0, SIZE, ALIGN))


def test_empty_stream_and_empty_file(implementation, tmp_path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with FileReader(path, backend=implementation) as reader:
        assert list(reader.stream([])) == []
        assert [chunk.size for _, chunk in reader.stream([(0, 0), (5, 0)])] == [0, 0]
        assert reader.read(0, 0).size == 0
        with pytest.raises(ReadError, match="the file ends at 0"):
            reader.read(0, 1)


def test_truncated_file_names_file_and_offset(implementation, file) -> None:
    with FileReader(file, backend=implementation) as reader:
        for offset, nbytes in ((SIZE - 10, 11), (SIZE + 5000, 1), (SIZE - ALIGN, 2 * ALIGN)):
            evict(file)
            expected = f"{nbytes} bytes at offset {offset}: the file ends at {SIZE}"
            stream = reader.stream([(0, 10), (offset, nbytes), (0, 10)])
            assert next(stream)[1].tobytes() == CONTENT[:10]
            with pytest.raises(ReadError, match=expected) as caught:
                next(stream)
            assert str(file) in str(caught.value)
            assert caught.value.errno == errno.ENODATA
            with pytest.raises(ReadError, match=expected):
                reader.read(offset, nbytes)


def test_file_that_shrinks_while_it_is_read(implementation, tmp_path) -> None:
    path = tmp_path / "shrinking"
    path.write_bytes(CONTENT)
    with FileReader(path, backend=implementation) as reader:
        stream = reader.stream([(0, 4096), (1 << 20, 1 << 20), (2 << 20, 1 << 20)], 1 << 20, 1)
        next(stream)
        os.truncate(path, (2 << 20) + 100)
        with pytest.raises(ReadError, match="ends at 2097252"):
            list(stream)


@needs_proc
def test_disk_error(implementation) -> None:
    """The kernel answers EIO for unmapped addresses of a process's memory file."""
    with FileReader("/proc/self/mem", backend=implementation) as reader:
        for attempt in (lambda: list(reader.stream([(0, 100)])), lambda: reader.read(0, 100)):
            with pytest.raises(ReadError, match=r"/proc/self/mem: .* offset 0: Input/output") as e:
                attempt()
            assert e.value.errno == errno.EIO


def test_cannot_be_opened(implementation, tmp_path) -> None:
    with pytest.raises(ReadError, match=r"absent: cannot be opened: No such file"):
        FileReader(tmp_path / "absent", backend=implementation)
    with FileReader(tmp_path, backend=implementation) as reader, pytest.raises(ReadError):
        list(reader.stream([(0, 1)]))


def test_refuses_nonsense(implementation, file) -> None:
    with pytest.raises(ValueError, match="num_threads"):
        FileReader(file, 0, backend=implementation)
    with FileReader(file, backend=implementation) as reader:
        for bad in ((-1, 1), (0, -1), (0, 101)):
            with pytest.raises(ValueError, match="a slot has 100"):
                reader.stream([(0, 1), bad], 100)
        with pytest.raises(ValueError, match="positive"):
            reader.stream([], 0)
        with pytest.raises(ValueError, match="no file has"):
            reader.read(-1, 4)


def test_closed(implementation, file) -> None:
    reader = FileReader(file, backend=implementation)
    stream = reader.stream([(0, 10)] * 200, 10, 1)
    next(stream)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(0, 1)
    with pytest.raises(ValueError, match="closed"):
        reader.stream([])
    with pytest.raises(ValueError, match="closed"):
        list(stream)


def test_abandoned_stream_and_late_look_at_a_chunk(implementation, file) -> None:
    with FileReader(file, backend=implementation) as reader:
        stream = reader.stream([(0, 1 << 20)] * 10, 1 << 20)
        next(stream)
        del stream
        ((_, chunk),) = list(reader.stream([(9, 1000)]))
    assert chunk.tobytes() == CONTENT[9:1009], "the ring lives as long as the chunk"


def test_two_streams_of_one_reader(implementation, file) -> None:
    ranges = [(i * 1000, 900) for i in range(300)]
    with FileReader(file, backend=implementation) as reader:
        pairs = zip(reader.stream(ranges), reader.stream(ranges[::-1]), strict=True)
        for (i, ahead), (j, back) in pairs:
            assert ahead.tobytes() == CONTENT[i * 1000 :][:900]
            assert back.tobytes() == CONTENT[(299 - j) * 1000 :][:900]


def test_read(implementation, file) -> None:
    with FileReader(file, backend=implementation) as reader:
        for offset, nbytes in ((0, 1), (SIZE - 7, 7), (12_345, 1 << 20), (SIZE, 0)):
            assert reader.read(offset, nbytes).tobytes() == CONTENT[offset : offset + nbytes]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork(implementation, file) -> None:
    """A child has none of the threads: it starts its own, and is told about lost reads."""
    evict(file)
    with FileReader(file, backend=implementation) as reader:
        stream = reader.stream([(0, 1 << 20)] * 20, 1 << 20, 2)
        next(stream)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            code = 1
            try:
                ((_, chunk),) = reader.stream([(5, 100_000)])
                code = 0 if chunk.tobytes() == CONTENT[5:100_005] else 2
                del stream
                reader.close()
            except BaseException:  # noqa: BLE001  the child must not run the rest of the tests
                code = 3
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert sum(1 for _ in stream) == 19


class TestRing:
    """Places in the ring, against a plain list of what is alive."""

    @given(st.integers(1, 40), st.lists(st.one_of(st.integers(1, 40), st.just(None)), max_size=200))
    def test_never_overlaps_and_never_starves(self, size: int, steps: list[int | None]) -> None:
        ring, alive = _Ring(size), []
        for span in steps:
            if span is None:
                if alive:
                    assert ring.first == alive[0][0]
                    ring.pop()
                    alive.pop(0)
            elif span <= size:
                place = ring.put(span)
                if place is None:
                    assert alive, "an empty ring takes whatever fits into it"
                    continue
                assert 0 <= place <= size - span
                assert all(place + span <= a or a + n <= place for a, n in alive)
                alive.append((place, span))


@needs_proc
def test_threads_do_not_outlive_the_reader(implementation, file) -> None:
    def num_tasks() -> int:
        return len(os.listdir("/proc/self/task"))

    before = num_tasks()
    with FileReader(file, 6, backend=implementation) as reader:
        list(reader.stream([(0, 10)] * 20))
        assert num_tasks() > before
    for _ in range(500):  # a joined thread may show for a moment longer
        if num_tasks() == before:
            break
        time.sleep(0.01)
    assert num_tasks() == before
