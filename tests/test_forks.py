"""What a forked child must not wait for: locks and imports of threads that it does not have."""

import os
import sys
import threading

import pytest

from fastllm.forks import Imports, Lock
from tests.golden.cases import case, materialize

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def in_child(check):
    """Whether `check` is true in a forked child."""
    child = os.fork()
    if child == 0:
        passed = False
        try:
            passed = check()
        finally:
            os._exit(0 if passed else 3)
    return os.waitpid(child, 0)[1] == 0


def elsewhere(enter):
    """Enter in another thread, stay there; returns what lets it leave."""
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with enter:
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(60)

    def let_go():
        leave.set()
        thread.join(60)

    return let_go


def refused():
    try:
        with Imports():
            return False
    except ValueError as error:
        return "forked while another thread loaded" in str(error)


def test_a_lock_that_another_thread_held_is_free_in_a_child():
    lock = Lock()
    let_go = elsewhere(lock.here)
    assert in_child(lambda: lock.here.acquire(timeout=0))
    assert not lock.here.acquire(timeout=0)
    let_go()


def test_a_child_of_a_moment_when_another_thread_imported_is_told():
    assert in_child(lambda: not refused())
    let_go = elsewhere(Imports())
    assert in_child(lambda: refused() and in_child(refused))
    assert not refused()
    let_go()
    assert in_child(lambda: not refused())


def test_a_child_of_the_thread_that_imports_goes_on():
    with Imports():
        assert in_child(lambda: not refused())


def test_an_import_that_was_interrupted_before_it_said_so_is_forgotten():
    left = Imports()
    left.__enter__()
    left.thread = 0
    assert in_child(refused)
    del left
    assert in_child(lambda: not refused())


WHILE_LOADING = """
import os, threading
from fastllm import LLM, RequestError
loads, go_on = threading.Event(), threading.Event()
def progress(what, share):
    loads.set()
    assert go_on.wait(60)
def load():
    with LLM({path!r}, progress=progress) as llm:
        print(len(llm.logits([1, 2])))
thread = threading.Thread(target=load)
thread.start()
assert loads.wait(60)
child = os.fork()
if child == 0:
    code = 1
    try:
        LLM({path!r})
    except RequestError as error:
        code = "spawn" not in str(error)
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
go_on.set()
thread.join()
"""


def test_an_llm_of_a_child_forked_while_one_was_loaded(python, tmp_path):
    folder = materialize(case("llama"), tmp_path / "model")
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    code = WHILE_LOADING.format(path=str(folder))
    done = python("-W", "ignore", "-c", code, env={"PYTHONPATH": paths}, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
