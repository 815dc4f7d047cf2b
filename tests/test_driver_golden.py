"""The driver over a real runner and a tiny model: unread, cancelled, interrupted, forked."""

import os
import signal
import sys

import pytest

from fastllm import LLM, SamplingParams
from fastllm.formats.checkpoint import open_checkpoint
from tests.driven import at_rest
from tests.golden.cases import case, materialize
from tests.step.models import runner_of
from tests.test_driver import soak

ANSWER = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPT = case("llama").token_ids.tolist()[:12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return materialize(case("llama"), tmp_path_factory.mktemp("golden") / "model")


def llm_of(folder, **options):
    return LLM._of(runner_of(open_checkpoint(folder), n_threads=2, **options), name="golden")


@pytest.fixture
def llm(folder):
    with llm_of(folder) as llm:
        yield llm


def test_answers_that_gave_way_are_the_same(folder, llm, monkeypatch):
    monkeypatch.setattr("fastllm.events.MAX_UNREAD", 4)  # so each is in the others' way, unread
    prompts = [[*PROMPT, i] for i in range(4)]
    expected = [llm.generate([prompt], ANSWER)[0].token_ids for prompt in prompts]
    with llm_of(folder, num_blocks=2, n_batch=8) as small:
        streams = [small.stream(prompt, ANSWER) for prompt in prompts]
        for stream, tokens in zip(streams, expected, strict=True):
            assert [t for c in stream for t in c.token_ids] == tokens


def test_a_cancelled_answer_is_the_beginning_and_leaves_the_cache_sound(llm):
    whole = llm.generate([PROMPT], ANSWER)[0].token_ids
    stream = llm.stream(PROMPT, ANSWER)
    tokens = [*next(stream).token_ids]
    stream.cancel()
    tokens += [t for c in stream for t in c.token_ids]
    assert tokens == whole[: len(tokens)]
    assert llm.generate([PROMPT], ANSWER)[0].token_ids == whole


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_interrupts_over_a_real_runner(llm):
    soak(llm, 100, 0.01, prompts=(PROMPT, PROMPT[:4]))
    at_rest(llm)


FORK = """
import os
from tests.test_driver_golden import ANSWER, PROMPT, llm_of
llm = llm_of({folder!r})
expected = llm.generate([PROMPT], ANSWER)[0].token_ids
lock = llm._runner._lock.here
for _ in range(5):
    busy = [llm.submit([*PROMPT, i], ANSWER) for i in range(4)]  # steps run while this forks
    lock.acquire()  # as in the middle of a step, whenever the fork happens to be
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = llm.generate([PROMPT], ANSWER)[0].token_ids != expected
            llm.close()
        finally:
            os._exit(code)
    lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(answer.result().finish_reason == "length" for answer in busy)
llm.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_middle_of_a_step(python, folder):
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    code = FORK.format(folder=str(folder))
    done = python("-W", "ignore", "-c", code, env={"PYTHONPATH": paths}, timeout=60)
    assert done.returncode == 0, done.stderr
