"""Feed: every job's bytes and words reach the function once, or an error says where."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm.errors import ReadError
from fastllm.flash.feed import Feed, Job, slots_bytes
from fastllm.memory.arena import Arena
from tests.flash.test_reader import evict, needs_proc

SIZE = 300_000
CONTENTS = [random.Random(seed).randbytes(SIZE) for seed in range(2)]
FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
)

pieces = st.tuples(st.integers(0, 1), st.integers(0, SIZE), st.integers(0, 70_000)).map(
    lambda piece: (*piece[:2], min(piece[2], SIZE - piece[1]))
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("feed")
    paths = [folder / f"model-{number}.gguf" for number in range(len(CONTENTS))]
    for path, content in zip(paths, CONTENTS, strict=True):
        path.write_bytes(content)
    return paths


class Taker:
    """A function for a Feed, in Python; words are (number, bytes, sentinel)."""

    def __init__(self, before=lambda number: None):
        self.taken: list[tuple[int, int, bytes]] = []
        self.before = before
        self.function = FUNCTION(self._take)
        self.address = ctypes.cast(self.function, ctypes.c_void_p).value

    def _take(self, _result, _exception, words, data):
        number, nbytes, sentinel = (ctypes.c_int64 * 3).from_address(words)
        assert sentinel == -7
        self.before(number)
        self.taken.append((number, data % 4096, ctypes.string_at(data, nbytes)))
        return 0


def jobs_of(files, ranges):
    return [
        Job(str(files[file]), offset, nbytes, (number, nbytes, -7))
        for number, (file, offset, nbytes) in enumerate(ranges)
    ]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ranges=st.lists(pieces, max_size=30), num_threads=st.integers(1, 9), cold=st.booleans())
def test_any_ranges(implementation, files, ranges, num_threads, cold) -> None:
    if cold:
        for path in files:
            evict(path)
    taker, told = Taker(), []
    feed = Feed(taker.address, jobs_of(files, ranges), num_threads, backend=implementation)
    feed.wait(told.append)
    assert sorted(taker.taken) == [
        (number, offset % 4096, CONTENTS[file][offset : offset + nbytes])
        for number, (file, offset, nbytes) in enumerate(ranges)
    ]
    assert all(0 <= share <= 1 for share in told)
    assert told == sorted(told)


def test_one_thread_keeps_the_order(implementation, files) -> None:
    taker = Taker()
    Feed(
        taker.address, jobs_of(files, [(0, n, 5) for n in range(50)]), 1, backend=implementation
    ).wait()
    assert [number for number, *_ in taker.taken] == list(range(50))


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_file_that_was_cut_short(implementation, tmp_path, num_threads) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(CONTENTS[0][:10_000])
    jobs = jobs_of([path], [(0, 0, 5000), (0, 9_990, 20), *[(0, 0, 5)] * 500])
    taker = Taker()
    feed = Feed(taker.address, jobs, num_threads, backend=implementation)
    with pytest.raises(
        ReadError, match=r"cut\.gguf: cannot read 20 bytes at offset 9990: .* 10000;"
    ):
        feed.wait()
    assert 1 not in [number for number, *_ in taker.taken]
    if num_threads == 1:
        assert [number for number, *_ in taker.taken] == [0], "the rest is left"


def test_a_file_that_is_not_there(implementation, files, tmp_path) -> None:
    taker = Taker()
    jobs = jobs_of([files[0], tmp_path / "gone.gguf"], [(0, 0, 5), (1, 0, 5)])
    with pytest.raises(ReadError, match=r"gone\.gguf: cannot be opened: No such file"):
        Feed(taker.address, jobs, 2, backend=implementation)
    assert not taker.taken


def test_closing_leaves_what_has_not_begun(implementation, files) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(number):
        begun.set()
        go_on.wait()

    taker = Taker(hold)
    feed = Feed(taker.address, jobs_of(files, [(0, 0, 9)] * 50), 2, backend=implementation)
    begun.wait()
    closer = threading.Thread(target=feed.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive(), "what has begun is waited for"
    go_on.set()
    closer.join()
    assert 1 <= len(taker.taken) <= 3  # a thread may be past its look at the flag
    feed.close()


def test_a_dropped_feed_ends_before_its_memory(implementation, files) -> None:
    """Slots and the function's memory are kept until no thread can touch them."""
    ended = []

    class Memory:
        def __del__(self):
            ended.append(len(taker.taken))

    begun = threading.Event()
    taker = Taker(lambda number: begun.set())
    feed = Feed(
        taker.address, jobs_of(files, [(0, 0, 70_000)] * 200), 3, Memory(), backend=implementation
    )
    begun.wait()
    del feed
    gc.collect()
    assert ended == [len(taker.taken)]


@needs_proc
def test_descriptors_are_closed(implementation, files) -> None:
    before = os.listdir("/proc/self/fd")
    taker = Taker()
    Feed(taker.address, jobs_of(files, [(0, 0, 5), (1, 5, 5)]), 2, backend=implementation).wait()
    assert os.listdir("/proc/self/fd") == before


def test_an_interrupt_ends_the_wait(implementation, files) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_):
        go_on.set()
        raise Interrupt

    begun, go_on = threading.Event(), threading.Event()

    def hold(number):
        begun.set()
        go_on.wait()

    taker = Taker(hold)
    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        feed = Feed(taker.address, jobs_of(files, [(0, 0, 9)] * 50), 1, backend=implementation)
        begun.wait()
        with pytest.raises(Interrupt):
            feed.wait(lambda share: os.kill(os.getpid(), signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert len(taker.taken) <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_says_so(implementation, files) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(number):
        begun.set()
        go_on.wait()

    taker = Taker(hold)
    feed = Feed(taker.address, jobs_of(files, [(0, 0, 9)] * 5), 1, backend=implementation)
    begun.wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            feed.wait()
        except ReadError as error:
            code = 0 if error.errno == errno.ECANCELED and "forked" in str(error) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    go_on.set()
    feed.wait()
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(taker.taken) == 5


@pytest.mark.parametrize(
    ("row", "slot_bytes", "num_threads", "message"),
    [
        ((-1, 1, 0, 4097), 4096, 1, "a slot has 4096"),
        ((-1, -1, 1, 4096), 4096, 1, "a slot has 4096"),
        ((-1, -1, -1, 1), 4096, 1, "a slot has 4096"),
        ((-1, -1, 0, -1), 4096, 1, "a slot has 4096"),
        ((-1, -1, 0, 1), 4095, 1, "multiples of 4096"),
        ((-1, -1, 0, 1), 4096, 0, "num_threads must be positive"),
        ((-1, -1, 0), 4096, 1, "at least 4 int64"),
    ],
)
def test_refuses_nonsense(implementation, row, slot_bytes, num_threads, message) -> None:
    with Arena(8192) as arena, pytest.raises(ValueError, match=message):
        implementation.Feeder(
            0, np.array([row], np.int64), arena.alloc(8192, 4096), slot_bytes, num_threads
        )


def test_slots_hold_the_blocks_around_a_range() -> None:
    assert slots_bytes(1, 1) == 2 * 4096  # it may lie across two
    assert slots_bytes(4097, 3) == 3 * 3 * 4096
