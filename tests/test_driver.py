"""The thread that steps: callers that are interrupted, gone, slow, many, asynchronous, forked."""

import asyncio
import contextlib
import gc
import os
import random
import signal
import sys
import threading
import weakref

import pytest

from fastllm import LLM, SamplingParams
from fastllm.errors import AnswerTimeoutError, KernelError, RequestError
from fastllm.events import MAX_UNREAD
from tests.driven import at_rest
from tests.fakes import FakeRunner, FakeTemplate, FakeTokenizer

LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=4)


def fake_llm(**runner):
    runner = {"n_ctx": 512, "num_blocks": 32, **runner}
    return LLM._of(FakeRunner(**runner), FakeTokenizer(), FakeTemplate(), "fake")


def scheduler_of(llm):
    at_rest(llm)
    return llm._driver.engine.scheduler


def held_up(llm):
    """Make each step wait for a permit; returns what gives them."""
    permits = threading.Semaphore(0)
    llm._runner.before_forward = lambda batch: permits.acquire(timeout=60)
    return permits


def let_go(llm, permits):
    llm._runner.before_forward = lambda batch: None
    permits.release(1000)


def test_several_threads_of_one_stream_all_come_to_its_end():
    llm = fake_llm()
    expected = llm.generate("x", LONG)[0].token_ids
    stream, found = llm.stream("x", LONG), []
    threads = [
        threading.Thread(target=lambda: found.extend(t for c in stream for t in c.token_ids))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(found) == sorted(expected)
    assert list(stream) == []


def test_an_unread_stream_is_computed_so_far_and_no_further():
    llm = fake_llm()
    expected = [c.text for c in llm.stream("x", LONG)]
    stream = llm.stream("x", LONG)
    first = next(stream)
    while not stream._seq.stalled:
        at_rest(llm)
    assert stream._seq.num_completion_tokens <= MAX_UNREAD + 2
    assert llm.generate("y", SHORT)[0].finish_reason == "length"  # it is in nobody's way
    assert [first.text, *(c.text for c in stream)] == expected


def test_unread_streams_leave_their_blocks_to_others():
    llm = fake_llm(num_blocks=8)
    streams = [llm.stream(f"{i}", LONG) for i in range(5)]
    assert llm.generate("long" * 100, SHORT)[0].finish_reason == "length"
    for i, stream in enumerate(streams):
        expected = fake_llm().generate(f"{i}", LONG)[0].token_ids
        assert [t for c in stream for t in c.token_ids] == expected


def test_a_dropped_stream_and_a_dropped_answer_leave_by_themselves():
    llm = fake_llm()
    permits = held_up(llm)
    stream, answer = llm.stream("x", LONG), llm.submit("y", LONG)
    del stream, answer
    gc.collect()
    let_go(llm, permits)
    scheduler = scheduler_of(llm)
    assert not scheduler.running
    assert not scheduler.waiting
    assert llm._runner.num_tokens < 100


def test_close_takes_one_step_and_tells_those_who_wait():
    llm = fake_llm()
    permits, seen = held_up(llm), []

    def ask():
        try:
            seen.append(llm.generate("x", LONG))
        except RequestError as error:
            seen.append(str(error))

    stream = llm.stream("z", LONG)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    permits.release()
    next(stream)
    closer = threading.Thread(target=llm.close)
    closer.start()
    while not llm._driver._loop.closing:
        pass
    permits.release()
    closer.join(timeout=60)
    assert not closer.is_alive()
    assert llm._runner.closed
    assert len(llm._runner.steps) <= 2
    for thread in threads:
        thread.join(timeout=60)
    assert len(seen) == 3
    assert all("closed" in text for text in seen)
    with pytest.raises(RequestError, match="closed while"):
        list(stream)
    assert list(stream) == []
    llm.close()
    with pytest.raises(RequestError, match="closed"):
        llm.generate("x", SHORT)


def test_reset_waits_for_nobody_and_the_answers_go_on():
    llm = fake_llm()
    expected = llm.generate("x", LONG)[0].token_ids
    permits = held_up(llm)
    answer = llm.submit("x", LONG)
    llm.reset()
    let_go(llm, permits)
    assert answer.result().token_ids == expected
    assert llm.generate("x", SHORT)[0].timings.cached_tokens > 0
    llm.reset()
    assert llm.generate("x", SHORT)[0].timings.cached_tokens == 0


def test_an_answer_can_be_waited_for_in_parts_and_cancelled_from_anywhere():
    llm = fake_llm()
    permits = held_up(llm)
    answer = llm.submit("x", LONG)
    with pytest.raises(AnswerTimeoutError, match="within 0 s") as raised:
        answer.result(timeout=0)
    assert isinstance(raised.value, TimeoutError)
    assert not answer.done()
    permits.release()
    threading.Thread(target=answer.cancel).start()
    while not answer._seq.cancelled:
        pass
    let_go(llm, permits)
    found = answer.result(timeout=60)
    assert found.finish_reason == "cancelled"
    assert found.token_ids == llm.generate("x", LONG)[0].token_ids[: len(found.token_ids)]
    assert answer.result() == found


def test_a_timeout_ends_the_answer_with_what_there_is():
    llm = fake_llm()
    assert llm.generate("x", LONG, timeout=0)[0].finish_reason == "cancelled"
    messages = [{"role": "user", "content": "hi"}]
    assert llm.chat(messages, LONG, timeout=0).finish_reason == "cancelled"
    assert llm.chat(messages, SHORT, timeout=60).finish_reason == "length"
    assert llm.submit_chat(messages, SHORT).result().text == llm.chat(messages, SHORT).text
    with pytest.raises(RequestError, match="timeout=-1"):
        llm.generate("x", timeout=-1)
    with pytest.raises(RequestError, match="a stream has none"):
        llm.chat(messages, stream=True, timeout=1)


def test_a_fault_of_ours_is_told_to_all_and_the_engine_goes_on():
    llm = fake_llm()
    expected = llm.generate("x", SHORT)[0].token_ids
    engine = llm._driver.engine
    step, engine.step = engine.step, lambda: 1 // 0
    with pytest.raises(KernelError, match="ZeroDivisionError"):
        llm.generate("x", SHORT)
    engine.step = step
    assert llm.generate("x", SHORT)[0].token_ids == expected


def test_a_dropped_llm_leaves_no_thread():
    llm = fake_llm()
    llm.generate("x", SHORT)
    loop, runner = weakref.ref(llm._driver._loop), llm._runner
    ended = threading.Event()
    weakref.finalize(llm._driver._loop, ended.set)
    del llm
    gc.collect()
    assert ended.wait(60)
    assert loop() is None
    assert runner is not None


def test_the_interpreter_ends_while_streams_run(python):
    code = """
import threading
from fastllm import SamplingParams
from tests.test_driver import LONG, fake_llm
llm = fake_llm()
stream = llm.stream("x", LONG)
next(stream)
other = llm.submit("y", LONG)
print("bye")
"""
    done = python(code, env={"PYTHONPATH": os.getcwd()})
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_its_own_thread(python):
    code = """
import os, sys
from fastllm.errors import RequestError
from tests.test_driver import LONG, SHORT, fake_llm
llm = fake_llm()
expected = llm.generate("x", SHORT)[0].token_ids
stream = llm.stream("y", LONG)
next(stream)
child = os.fork()
if child == 0:
    ok = llm.generate("x", SHORT)[0].token_ids == expected
    try:
        list(stream)
        ok = False
    except RequestError as error:
        ok = ok and "forked" in str(error)
    llm.close()
    os._exit(0 if ok else 3)
assert os.waitpid(child, 0)[1] == 0
assert llm.generate("x", SHORT)[0].token_ids == expected
print(len(list(stream)) > 0)
"""
    done = python("-W", "ignore", "-c", code, env={"PYTHONPATH": os.getcwd()})
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


# --------------------------------------------------------------------------- asyncio
def test_asyncio_answers_are_those_of_generate():
    llm = fake_llm()
    messages = [{"role": "user", "content": "hi"}]
    expected = [c.token_ids for c in llm.generate(["a", "b"], LONG)]
    chat = llm.chat(messages, LONG).text

    async def main():
        both, one = await asyncio.gather(llm.agenerate(["a", "b"], LONG), llm.achat(messages, LONG))
        assert [c.token_ids for c in both] == expected
        assert one.text == chat
        async with await llm.astream("a", LONG) as stream:
            assert [t async for c in stream for t in c.token_ids] == expected[0]
        stream = await llm.astream_chat(messages, LONG)
        assert "".join([c.text async for c in stream]) == chat
        assert [c async for c in stream] == []

    asyncio.run(main())


def test_cancelling_a_task_ends_its_request():
    llm = fake_llm()
    permits = held_up(llm)

    async def main():
        whole = asyncio.ensure_future(llm.agenerate("a", LONG))
        stream = await llm.astream("b", LONG)
        piece = asyncio.ensure_future(anext_of(stream))
        await asyncio.sleep(0)
        for task in (whole, piece):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert [c async for c in stream] == []

    asyncio.run(main())
    let_go(llm, permits)
    scheduler = scheduler_of(llm)
    assert not scheduler.running
    assert not scheduler.waiting


async def last_of(stream):
    async for chunk in stream:
        last = chunk
    return last


async def anext_of(stream):
    return await stream.__anext__()


def test_asyncio_errors_reach_the_task():
    llm = fake_llm()

    async def main():
        permits = held_up(llm)
        stream = await llm.astream("b", LONG)
        closer = threading.Thread(target=llm.close)
        closer.start()
        permits.release(1000)
        with pytest.raises(RequestError, match="closed"):
            await last_of(stream)
        closer.join(timeout=60)
        with pytest.raises(RequestError, match="closed"):
            await llm.agenerate("x", SHORT)

    asyncio.run(main())


def test_a_stream_belongs_to_its_event_loop():
    llm = fake_llm()
    expected = llm.generate("a", LONG)[0].token_ids
    stream, seen = [], []

    async def elsewhere():
        for _ in range(2):
            with pytest.raises(RequestError, match="belongs to the event loop"):
                await anext_of(stream[0])
        seen.append("refused")

    async def main():
        stream.append(await llm.astream("a", LONG))
        first = await anext_of(stream[0])
        thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
        thread.start()
        thread.join(timeout=60)
        # where it belongs it goes on
        rest = [t async for c in stream[0] for t in c.token_ids]
        assert [*first.token_ids, *rest] == expected

    asyncio.run(main())
    asyncio.run(elsewhere())  # and when its loop has ended
    assert seen == ["refused", "refused"]


# --------------------------------------------------------------------------- interrupts
class Late(Exception):
    """What the signal handler raises."""


def interrupted(llm, prompt, params, rng, number, at_most_s):
    """Run one request and interrupt it at a random moment, in one of its forms."""
    form, after_s = number % 5, rng.uniform(1e-5, at_most_s)
    if form == 4:
        # A task is interrupted by cancelling it. An exception out of a signal handler may hit the
        # event loop itself, which then loses a wake-up: asyncio.run hangs, with or without us.
        with contextlib.suppress(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(_asynchronous(llm, prompt, params), after_s))
        return
    try:
        signal.setitimer(signal.ITIMER_REAL, after_s)
        if form == 0:
            llm.generate([prompt], params)
        elif form == 1:
            with llm.stream(prompt, params) as stream:
                for _ in stream:
                    pass
        elif form == 2:
            for _ in llm.stream(prompt, params):
                pass
        else:
            llm.submit(prompt, params).result()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Late:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


async def _asynchronous(llm, prompt, params):
    async for _ in await llm.astream(prompt, params):
        pass


def soak(llm, rounds, at_most_s, prompts=(list(b"Once upon a time"), list(b"The capital")), seed=1):
    """Interrupt `rounds` requests; bystanders and those who come after must not notice."""
    rng = random.Random(seed)
    long, short = prompts
    params = SamplingParams(
        temperature=0, max_tokens=min(400, llm.n_ctx - len(long)), ignore_eos=True
    )
    llm.generate([short], SHORT)
    expected = llm.generate([short], SHORT)[0].token_ids
    wrong, stop = [], threading.Event()

    def bystander():
        while not stop.is_set():
            try:
                found = llm.generate([short], SHORT)[0]
            except Exception as error:  # noqa: BLE001  whatever it is, it is wrong
                wrong.append(repr(error))
            else:
                if found.token_ids != expected or found.finish_reason != "length":
                    wrong.append(found)

    def handler(*_):
        raise Late

    thread = threading.Thread(target=bystander)
    before = signal.signal(signal.SIGALRM, handler)
    thread.start()
    try:
        for number in range(rounds):
            try:
                interrupted(llm, long, params, rng, number, at_most_s)
            except Late:  # in the `finally`: as good a place as any
                signal.setitimer(signal.ITIMER_REAL, 0)
            answer = llm.submit(short, SHORT)
            assert answer.result(timeout=60).token_ids == expected, number
            assert not wrong, (number, wrong[0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stop.set()
        thread.join(timeout=60)
    assert not thread.is_alive()
    gc.collect()
    scheduler = scheduler_of(llm)
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.pool.num_free + scheduler.session.num_blocks == scheduler.pool.num_blocks


SIGNALS = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")


@SIGNALS
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_interrupts_end_the_callers_request_and_nothing_else():
    soak(fake_llm(), 150, 0.01)


@SIGNALS
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_five_thousand_interrupts():
    soak(fake_llm(), 5000, 0.02)


@SIGNALS
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_thousand_interrupts_of_the_real_model(smollm2):
    with LLM(smollm2, n_ctx=1024) as llm:
        soak(llm, 1000, 0.06)


def lines_of_ours(call):
    """Run `call` and count the lines of fastllm that it passes in this thread."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if f"{os.sep}fastllm{os.sep}" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("form", ["generate", "stream", "submit"])
def test_an_exception_before_any_opcode_of_a_caller(form):
    """Not at random moments, but at every one: each opcode of ours raises once."""
    llm = fake_llm()
    few = SamplingParams(temperature=0, max_tokens=3)

    def ask():
        if form == "generate":
            llm.generate([[1, 2, 3]], few)
        elif form == "submit":
            llm.submit([1, 2, 3], few).result()
        else:
            with llm.stream([1, 2, 3], few) as stream:
                list(stream)

    ask()
    expected = llm.generate([[4]], SHORT)[0].token_ids
    opcodes = lines_of_ours(ask)
    for number in range(1, opcodes + 1):
        passed = 0

        def trace(frame, event, arg, number=number):
            nonlocal passed
            if f"{os.sep}fastllm{os.sep}" not in frame.f_code.co_filename:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                passed += 1
                if passed == number:
                    raise Late
            return trace

        sys.settrace(trace)
        try:
            ask()
        except Late:
            pass
        finally:
            sys.settrace(None)
        assert llm.submit([4], SHORT).result(timeout=60).token_ids == expected, number
    gc.collect()
    scheduler = scheduler_of(llm)
    assert not scheduler.running
    assert not scheduler.waiting
