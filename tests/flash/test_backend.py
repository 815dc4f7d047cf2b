"""Laws that the compiled pool and its twin obey alike."""

from __future__ import annotations

import errno
import os
import random
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastllm.memory.arena import Arena

CONTENT = random.Random(1).randbytes(300_000)


@pytest.fixture
def fd(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(("num_threads", "capacity"), [(1, 1), (3, 2), (8, 1024)])
def test_a_batch_of_many_reads(implementation, fd, num_threads: int, capacity: int) -> None:
    """More requests than the queue holds: the poster does the rest, nothing is lost."""
    order = random.Random(2)
    reads = [(order.randrange(250_000), order.randrange(50_000)) for _ in range(60)]
    pool = implementation.Pool(num_threads, capacity)
    with Arena(4 << 20) as arena:
        places = [arena.alloc(nbytes) for _, nbytes in reads]
        posted = [(*read, place) for read, place in zip(reads, places, strict=True)]
        assert pool.submit(fd, -1, posted, 4096).wait() == 0
        for (offset, nbytes), place in zip(reads, places, strict=True):
            assert arena.view(place, nbytes).tobytes() == CONTENT[offset : offset + nbytes]
    pool.close()


def test_many_batches_in_flight(implementation, fd) -> None:
    pool = implementation.Pool(4)
    with Arena(1 << 20) as arena:
        places = [arena.alloc(1000) for _ in range(200)]
        batches = [pool.submit(fd, -1, [(i * 1000, 1000, p)]) for i, p in enumerate(places)]
        for i in random.Random(3).sample(range(200), 200):
            assert batches[i].wait() == 0
            assert arena.view(places[i], 1000).tobytes() == CONTENT[i * 1000 :][:1000]
            assert batches[i].wait() == 0, "waiting again is harmless"
    pool.close()


def test_first_error_wins_and_the_rest_is_read(implementation, fd) -> None:
    pool = implementation.Pool(2)
    with Arena(1 << 20) as arena:
        good, bad = arena.alloc(100), arena.alloc(100)
        assert pool.submit(fd, -1, [(299_950, 100, bad), (7, 100, good)]).wait() == errno.ENODATA
        assert arena.view(good, 100).tobytes() == CONTENT[7:107]
        closed = os.dup(fd)
        os.close(closed)
        assert pool.submit(closed, -1, [(0, 100, good)]).wait() == errno.EBADF
    pool.close()


def test_dropping_a_batch_waits_for_it(implementation, fd) -> None:
    pool = implementation.Pool(1)
    with Arena(1 << 20) as arena:
        place = arena.alloc(len(CONTENT))
        pool.submit(fd, -1, [(0, len(CONTENT), place)], 4096)
        assert arena.view(place, len(CONTENT)).tobytes() == CONTENT
    pool.close()


def test_empty_batch_and_closed_pool(implementation, fd) -> None:
    pool = implementation.Pool(1)
    assert pool.submit(fd, -1, []).wait() == 0
    assert pool.submit(fd, -1, [(5, 0, 0)]).wait() == 0
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.submit(fd, -1, [])


@pytest.mark.parametrize(
    ("direct", "read", "request_bytes", "message"),
    [
        (-1, (-1, 1, 4096), 4096, "no file has"),
        (-1, (0, -1, 4096), 4096, "no file has"),
        (-1, (1 << 62, 1 << 61, 4096), 4096, "no file has"),
        (-1, (0, 1, 4096), 4095, "multiple of 4096"),
        (-1, (0, 1, 4096), 0, "multiple of 4096"),
        (0, (1, 1, 4096), 4096, "multiples of 4096"),
        (0, (4096, 1, 4097), 4096, "multiples of 4096"),
    ],
)
def test_refuses_nonsense(implementation, fd, direct, read, request_bytes, message) -> None:
    pool = implementation.Pool(1)
    with pytest.raises(ValueError, match=message):
        pool.submit(fd, direct, [(0, 0, 4096), read], request_bytes)
    pool.close()


@pytest.mark.parametrize(("num_threads", "capacity"), [(0, 8), (-1, 8), (1, 0), (1, 3)])
def test_refuses_odd_pools(implementation, num_threads: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="num_threads must be positive"):
        implementation.Pool(num_threads, capacity)


def test_environment_asks_for_the_twin(python) -> None:
    code = "from fastllm.flash import backend; print(backend.NAME)"
    assert python(code, env={"FASTLLM_PURE": "1"}).stdout.strip() == "pure"
    built = "native" if find_spec("fastllm._ext.reader") else "pure"
    assert python(code, env={"FASTLLM_PURE": ""}).stdout.strip() == built
