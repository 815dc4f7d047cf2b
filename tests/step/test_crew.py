"""One crew for all models of a process: turns, steps side by side, newcomers, leaving, idling.

The steps here are tables of one operation written in Python: the crew calls it by address, as it
does every other.
"""

import ctypes
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.kernels import objects
from fastllm.kernels.crew import Crew as Block
from fastllm.kernels.crew import Gate
from fastllm.kernels.interpreter_codes import STEP_ARGS
from fastllm.kernels.words import ROW_WORDS, Context, Op, Span
from fastllm.step import crew as crews
from fastllm.step.crew import Seat
from tests.step.batches import Part, assert_same_bits, batch_of, feed
from tests.step.models import golden

OPERATION = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p, *[ctypes.c_int64] * 3
)
PATIENCE_S = 60


class Model:
    """A seat whose step calls ``work(tid)`` in every thread."""

    def __init__(
        self, num_threads: int, work: Callable[[int], object], cpus: Sequence[int] = range(64)
    ) -> None:
        def run(result, exception, context, op, tid):
            work(tid)
            result[0] = 0
            return 0

        self.num_threads = num_threads
        self.operation = OPERATION(run)
        self.table = np.zeros((1, ROW_WORDS), np.int64)
        self.table[0, Op.FUNCTION] = ctypes.cast(self.operation, ctypes.c_void_p).value
        self.table[0, [Op.SPAN, Op.BARRIER]] = Span.TOKENS, 1
        self.context = np.zeros(Context.WORDS, np.int64)
        self.context[Context.OPS], self.context[Context.NUM_OPS] = self.table.ctypes.data, 1
        entry = objects.callable_at(objects.addresses(["step"])["step"], STEP_ARGS)
        self.seat = Seat(entry, self.context, num_threads, list(cpus))

    def step(self) -> None:
        assert self.seat.run() == 0

    def in_a_thread(self) -> threading.Thread:
        """Step once, elsewhere; returns when the step stands in line."""
        asked = tickets()
        thread = threading.Thread(target=self.step)
        thread.start()
        until(lambda: tickets() > asked)
        return thread


def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells: words that compiled code writes."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield() if hasattr(os, "sched_yield") else time.sleep(0)


def block_word(place: int) -> int:
    return int(crews._crew.block[place:][:4].view(np.int32)[0])


def tickets() -> int:
    return block_word(Block.TICKETS)


@pytest.fixture
def open_model():
    """``open_model(num_threads, work)`` is closed after the test."""
    models = []

    def opened(num_threads, work=lambda tid: None, **options):
        models.append(Model(num_threads, work, **options))
        return models[-1]

    yield opened
    for model in models:
        model.seat.close()


@pytest.fixture(params=[2])
def cores(request, monkeypatch):
    """How many the machine seems to have."""
    monkeypatch.setattr(crews, "default_threads", lambda: request.param)
    return request.param


def finished(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


# --------------------------------------------------------------------------- turns
@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_every_thread_runs_the_table_once(open_model, cores, num_threads):
    seen = []
    model, other = open_model(num_threads, seen.append), open_model(2)
    for _ in range(20):
        model.step()
        other.step()
        assert sorted(seen) == list(range(num_threads))
        seen.clear()


def test_first_come_first_served(open_model, cores):
    order, go = [], threading.Event()

    def named(name):
        return open_model(2, lambda tid: order.append(name) if tid == 0 else None)

    busy, *others = open_model(2, lambda tid: go.wait(PATIENCE_S)), *map(named, "abcde")
    for model in (*others, busy):  # one crew knows them all
        go.set()
        model.step()
    order.clear()
    go.clear()
    threads = [model.in_a_thread() for model in (busy, *others)]
    assert order == []
    go.set()
    finished(*threads)
    assert order == list("abcde")


@pytest.mark.parametrize("cores", [4], indirect=True)
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 3), (1, 1, 1, 1)])
def test_side_by_side_while_there_are_cores(open_model, cores, shape):
    """Each waits for the other in the middle of its step."""
    meeting = threading.Barrier(len(shape), timeout=PATIENCE_S)
    models = [open_model(n, lambda tid: tid or meeting.wait()) for n in shape]
    threads = [threading.Thread(target=model.step) for model in models]
    for thread in threads:
        thread.start()
    finished(*threads)


def test_many_threads_are_not_overtaken_by_few(open_model, cores):
    order, go = [], threading.Event()
    busy = open_model(1, lambda tid: go.wait(PATIENCE_S))
    wide = open_model(2, lambda tid: order.append("wide") if tid == 0 else None)
    narrow = open_model(1, lambda tid: order.append("narrow"))
    go.set()
    busy.step()
    go.clear()
    threads = [model.in_a_thread() for model in (busy, wide, narrow)]
    go.set()
    finished(*threads)
    assert order == ["wide", "narrow"]


# --------------------------------------------------------------------------- coming and going
def test_threads_go_with_the_last_model(open_model, cores):
    one, two = open_model(3), open_model(2)
    one.step()
    two.step()
    threads = crews._crew.threads
    assert len(threads) >= 2
    one.seat.close()
    assert all(thread.is_alive() for thread in threads)
    two.step()
    two.seat.close()
    if crews._taken:  # whoever else is open in this process keeps the crew
        assert crews._crew is None or not crews._crew.needs.isdisjoint(crews._taken)
    else:
        assert not any(thread.is_alive() for thread in threads)


def test_threads_go_with_a_model_that_is_only_dropped():
    model = Model(3, lambda tid: None)
    model.step()
    threads = crews._crew.threads
    del model
    gc.collect()
    if not crews._taken:
        finished(*threads)
    fresh = Model(2, lambda tid: None)  # who comes next finds no trace of it
    fresh.step()
    finished(*threads)
    fresh.seat.close()


LIVES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=6
)


@settings(max_examples=20, deadline=None)
@given(callers=st.lists(LIVES, min_size=2, max_size=4))
def test_models_come_and_go_while_others_step(callers):
    """Every step is run by its own threads, once each, and never on more cores than there are."""
    crews_threads, crews.default_threads = crews.default_threads, lambda: 3
    running, lock, wrong = [], threading.Lock(), []

    def live(lives):
        for num_threads, steps, close in lives:
            seen = []

            def work(tid, seen=seen, num_threads=num_threads):
                with lock:
                    seen.append(tid)
                    if tid == 0:
                        running.append(num_threads)
                        if len(running) > 1 and sum(running) > 3:
                            wrong.append(list(running))
                if tid == 0:
                    with lock:
                        running.remove(num_threads)

            model = Model(num_threads, work)
            for _ in range(steps):
                model.step()
                if sorted(seen) != list(range(num_threads)):
                    wrong.append(list(seen))
                seen.clear()
            if close:
                model.seat.close()
            del model

    try:
        threads = [threading.Thread(target=live, args=(lives,)) for lives in callers]
        for thread in threads:
            thread.start()
        finished(*threads)
    finally:
        crews.default_threads = crews_threads
    assert wrong == []


def test_a_thread_that_cannot_start(open_model, monkeypatch):
    """The step fails, and works once there is room again."""
    model, start, count = open_model(4), threading.Thread.start, [0]

    def refused(thread):
        count[0] += 1
        if count[0] == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="new thread"):
            model.seat.run()
    model.step()


# --------------------------------------------------------------------------- which CPU
@pytest.fixture
def cpus():
    """Those of this process, which must be several."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("threads are bound to CPUs where there are some and the system can")
    return sorted(os.sched_getaffinity(0))


def test_a_caller_is_on_a_cpu_for_its_step(open_model, cpus):
    seen = {}
    model = open_model(
        len(cpus), lambda tid: seen.update({tid: os.sched_getaffinity(0)}), cpus=cpus
    )
    model.step()
    assert seen == {tid: {cpu} for tid, cpu in enumerate(cpus)}
    assert os.sched_getaffinity(0) == set(cpus)


def test_a_thread_of_its_own_stays_there(open_model, cpus):
    """And gives that up at the end; whoever else steps meanwhile gets back what it had."""
    model, after = open_model(len(cpus), cpus=cpus), []

    def step_elsewhere():
        os.sched_setaffinity(0, cpus)  # a thread begins where its starter is
        model.step()
        after.append(os.sched_getaffinity(0))

    other = threading.Thread(target=step_elsewhere)
    with model.seat.own_thread():
        model.step()
        assert os.sched_getaffinity(0) == {cpus[0]}
        other.start()
        finished(other)
        model.step()
        assert os.sched_getaffinity(0) == {cpus[0]}
    assert after == [set(cpus)]
    assert os.sched_getaffinity(0) == set(cpus)


def test_workers_without_a_cpu_of_their_own_have_all(open_model, cpus, monkeypatch):
    """Also where a bound thread starts them."""
    monkeypatch.setattr(crews, "default_threads", lambda: len(cpus))
    seen = {}
    narrow = open_model(len(cpus), cpus=cpus)
    wide = open_model(
        len(cpus) + 2, lambda tid: seen.update({tid: os.sched_getaffinity(0)}), cpus=cpus
    )
    with narrow.seat.own_thread():
        narrow.step()
    wide.step()
    bound = [{cpu} for cpu in cpus[1:]]
    assert [seen[tid] for tid in range(1, len(cpus) + 2)] == [*bound, set(cpus), set(cpus)]


# --------------------------------------------------------------------------- idling
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sleeps on a futex on Linux only")
def test_idle_threads_take_no_time(open_model, cores):
    """Those of a model that does not step sleep while another one does."""
    wide, narrow = open_model(4), open_model(1)
    wide.step()
    threads = crews._crew.threads
    assert len(threads) >= 3

    def asleep(thread):
        with open(f"/proc/self/task/{thread.native_id}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "S"

    def spent():
        return [time.clock_gettime(time.pthread_getcpuclockid(one.ident)) for one in threads]

    gates = [Block.GATES + worker * Gate.BYTES for worker in range(len(threads))]
    until(lambda: all(block_word(gate + 4) == 1 for gate in gates))
    until(lambda: all(map(asleep, threads)))
    before = spent()
    for _ in range(500):
        narrow.step()
    assert spent() == before
    wide.step()
    assert spent() != before


# --------------------------------------------------------------------------- interrupts
class Alarm(Exception):
    """Raised by the signal handler."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarms here")
def test_an_interrupted_caller_leaves_nothing_behind(load, tmp_path):
    """Alarms strike anywhere in a caller's step; the other model's steps go on all the while."""
    checkpoint, _ = golden("llama", tmp_path / "model")
    mine, others = (load(checkpoint, n_threads=2, num_blocks=1) for _ in range(2))
    batch = batch_of(Part(range(40), 0, [0]))
    expected = feed(mine, Part(range(40), 0, [0]))
    stop, steps = threading.Event(), [0]

    def work():
        while not stop.is_set():
            assert_same_bits(feed(others, Part(range(40), 0, [0])), expected)
            steps[0] += 1

    def ring(number, frame):
        raise Alarm

    chance, alarms = random.Random(1), 0
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    handler = signal.signal(signal.SIGALRM, ring)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        while alarms < 200:
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 2e-3))
                while True:
                    mine.forward(batch)
            except Alarm:
                alarms += 1
        if affinity is not None:
            os.sched_setaffinity(0, affinity)
        before = steps[0]
        until(lambda: steps[0] > before or not thread.is_alive())
        assert_same_bits(feed(mine, Part(range(40), 0, [0])), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert steps[0] > before
