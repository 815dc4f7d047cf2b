"""The runner's door: bad batches, closing, threads, forks."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from fastllm.errors import RequestError
from fastllm.kernels.road import choose_road
from fastllm.step.plan import MAX_LOGIT_ROWS
from tests.golden.cases import case, materialize
from tests.step.batches import Part, assert_same_bits, batch_of, feed
from tests.step.models import golden, quantized, runner_of

VOCAB, N_CTX = 131, 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return golden("llama", tmp_path_factory.mktemp("runner") / "model")[0]


@pytest.fixture(scope="module")
def runner(load, checkpoint):
    return load(checkpoint, n_threads=2, num_blocks=4, n_batch=50)


def ints(*values):
    return np.array(values, np.int32)


# --------------------------------------------------------------------------- bad batches
GOOD = batch_of(Part([1, 2, 3], 0, [0]), Part([4, 5], 0, [1]))
BAD = {
    "id too large": {"token_ids": ints(1, 2, VOCAB, 4, 5)},
    "id negative": {"token_ids": ints(1, -1, 3, 4, 5)},
    "position too large": {"positions": ints(62, 63, 64, 0, 1)},
    "position negative": {"positions": ints(-1, 0, 1, 0, 1)},
    "positions not consecutive": {"positions": ints(0, 2, 3, 0, 1)},
    "positions too few": {"positions": ints(0, 1, 2, 0)},
    "row too large": {"logit_rows": ints(5)},
    "row negative": {"logit_rows": ints(-1)},
    "sequences end early": {"seq_starts": ints(0, 3, 4)},
    "sequences end late": {"seq_starts": ints(0, 3, 6)},
    "sequences begin late": {"seq_starts": ints(1, 3, 5)},
    "an empty sequence": {"seq_starts": ints(0, 3, 3, 5), "block_tables": ints(0, 1, 2)[:, None]},
    "sequences go back": {"seq_starts": ints(0, 4, 2, 5), "block_tables": ints(0, 1, 2)[:, None]},
    "a sequence ends beyond": {"seq_starts": ints(0, 6, 5)},
    "a sequence begins beyond": {
        "seq_starts": ints(0, 6, 7, 5), "block_tables": ints(0, 1, 2)[:, None],
    },
    "block too large": {"block_tables": ints(0, 4)[:, None]},
    "block negative": {"block_tables": ints(-1, 1)[:, None]},
    "table too short": {"block_tables": np.zeros((2, 0), np.int32)},
    "no tokens": {
        "token_ids": ints(), "positions": ints(), "seq_starts": ints(0), "logit_rows": ints(),
    },
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_batch_is_refused_and_harms_nothing(runner, what):
    before = feed(runner, Part([1, 2, 3], 0, [0]), Part([4, 5], 0, [1]))
    with pytest.raises(RequestError) as caught:
        runner.forward(replace(GOOD, **BAD[what]))
    assert "\n" not in str(caught.value)
    assert_same_bits(runner.forward(GOOD).copy(), before)


def test_a_batch_that_is_too_long(runner):
    with pytest.raises(RequestError, match="51 tokens; at most 50"):
        runner.forward(batch_of(Part([1] * 51, 0, [0])))


def test_the_last_position_is_allowed(runner):
    assert np.isfinite(feed(runner, Part([1] * 50, 0, [0]))).all()
    assert np.isfinite(feed(runner, Part([1] * 14, 50, [0]))).all()
    with pytest.raises(RequestError, match=r"position outside 0\.\.63"):
        runner.forward(batch_of(Part([1], 64, [0, 1])))


def test_tables_may_be_wider_than_the_context(runner):
    """Nobody looks at what lies behind the blocks that are in use."""
    table = batch_of(Part([1, 2, 3], 0, [2, -1, VOCAB]), Part([4], 0, [1]))
    assert_same_bits(
        runner.forward(table).copy(), feed(runner, Part([1, 2, 3], 0, [2]), Part([4], 0, [1]))
    )


# --------------------------------------------------------------------------- loading
def test_a_context_beyond_the_model(checkpoint):
    with pytest.raises(RequestError, match=r"n_ctx=65: .* 1 to 64"):
        runner_of(checkpoint, n_ctx=65)


def test_what_a_runner_tells(checkpoint, load):
    told = []
    runner = load(checkpoint, n_ctx=40, progress=lambda what, share: told.append((what, share)))
    assert (runner.vocab_size, runner.n_ctx, runner.block_size) == (VOCAB, 40, 64)
    assert runner.num_blocks == 1
    assert runner.n_threads >= 1
    assert runner.isa == choose_road().name
    assert runner.kv_type == "f32"  # loaded to be compared: nothing is rounded
    assert runner.model_bytes > 0
    assert told[-1] == ("reading weights", 1.0)


# --------------------------------------------------------------------------- closing
def test_close(checkpoint):
    runner = runner_of(checkpoint, n_threads=3)
    feed(runner, Part([1, 2], 0, [0]))
    runner.close()
    runner.close()
    with pytest.raises(RequestError, match="closed"):
        runner.forward(batch_of(Part([1, 2], 0, [0])))


def test_close_without_a_step(checkpoint):
    runner_of(checkpoint, n_threads=2).close()


def test_the_file_may_go_once_it_is_loaded(tmp_path):
    path = tmp_path / "model.gguf"
    runner = runner_of(quantized(path, "q4_0"), n_threads=1)
    try:
        before = feed(runner, Part([1, 2, 3], 0, [0]))
        path.unlink()
        assert_same_bits(feed(runner, Part([1, 2, 3], 0, [0])), before)
    finally:
        runner.close()


def test_a_runner_that_is_only_dropped(python, tmp_path):
    """Its threads outlive it, asleep; they must not wake up in the memory of the next one."""
    folder = materialize(case("llama"), tmp_path / "model")
    code = f"""
import gc
import numpy as np
from fastllm.formats.checkpoint import open_checkpoint
from tests.step.batches import Part, assert_same_bits, feed
from tests.step.models import runner_of
checkpoint, known = open_checkpoint({str(folder)!r}), None
for _ in range(40):
    runner = runner_of(checkpoint, n_threads=3)
    for _ in range(5):
        logits = feed(runner, Part(range(40), 0, [0]))
        known = logits if known is None else known
        assert_same_bits(logits, known)
    del runner
    gc.collect()
"""
    done = python(code, env=_paths(), timeout=30)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------- threads and forks
def test_two_runners_at_once(checkpoint, load, tmp_path):
    other = load(quantized(tmp_path / "model.gguf", "q4_k"), n_threads=2)
    runner = load(checkpoint, n_threads=2)
    expected = {one: feed(one, Part(range(40), 0, [0])) for one in (runner, other)}

    def work(one):
        for _ in range(30):
            assert_same_bits(feed(one, Part(range(40), 0, [0])), expected[one])

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(work, one) for one in (runner, other)]:
            job.result(60)


def test_one_runner_from_two_threads(checkpoint, load):
    """Steps wait for each other. Many rows, because those are returned as a copy."""
    runner = load(checkpoint, n_threads=2, num_blocks=2)
    count = MAX_LOGIT_ROWS + 1
    prompts = [range(count), range(50, 50 + count)]
    expected = [feed(runner, Part(ids, 0, [block])) for block, ids in enumerate(prompts)]

    def work(block):
        for _ in range(50):
            logits = runner.forward(batch_of(Part(prompts[block], 0, [block])))
            assert_same_bits(logits, expected[block])

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(work, block) for block in (0, 1)]:
            job.result(60)


def test_other_threads_run_while_it_computes(tmp_path, monkeypatch):
    """The GIL is free inside the native call, or no other thread could count meanwhile."""
    checkpoint = quantized(tmp_path / "model.gguf", "q4_k", context=512)
    runner = runner_of(checkpoint, n_threads=1, n_batch=512)
    counter, stop, during = [0], threading.Event(), []
    entry = runner._seat._entry

    def watched(*args):
        before = counter[0]
        result = entry(*args)
        during.append(counter[0] - before)
        return result

    def count():
        while not stop.is_set():
            counter[0] += 1
            time.sleep(1e-4)

    monkeypatch.setattr(runner._seat, "_entry", watched)
    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    try:
        thread.start()
        sys.setswitchinterval(30)  # nobody is asked to give the GIL up: it must be given freely
        runner.forward(batch_of(Part(np.arange(512) % 100, 0, range(8)), rows=[]))
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()
        runner.close()
    assert max(during) > 0


FORK = """
import os
from fastllm.formats.checkpoint import open_checkpoint
from tests.step.batches import Part, assert_same_bits, feed
from tests.step.models import runner_of

def ask():
    return feed(runner, Part(range(40), 0, [0]))

runner = runner_of(open_checkpoint({path!r}), n_threads=3)
known = ask() if {ran_before} else None
for _ in range(3):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for _ in range(3):
                logits = ask()
                assert_same_bits(logits, logits if known is None else known)
            runner.close()
            code = 0
        finally:
            os._exit(code)
    known = ask()  # at the same time as the child
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_same_bits(ask(), known)
runner.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("ran_before", [True, False])
def test_after_a_fork(python, tmp_path, ran_before):
    """Parent and child both compute, the same bits, and the child's close harms nobody."""
    folder = materialize(case("llama"), tmp_path / "model")
    done = python(FORK.format(path=str(folder), ran_before=ran_before), env=_paths(), timeout=60)
    assert done.returncode == 0, done.stderr


def _paths():
    """For subprocesses that import the tests' own modules."""
    return {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
