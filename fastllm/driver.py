"""Driver: the one thread that steps the engine, and how callers reach it.

Callers touch nothing that could be left half done. What they want goes through a `SimpleQueue`,
whose ``put`` is a single call into C (and may even happen in a signal handler or a finalizer), or
is a flag of one word. The thread itself is never interrupted: Python runs signal handlers in the
main thread only. So an exception at any bytecode of a caller ends that caller's request (its handle
is gone, or its ``finally`` says so) and can harm nothing else.

The thread starts with the first request, sleeps while there is nothing to compute, and ends with
`Driver.close`, with the interpreter, or when nobody holds the driver any more. It refers to the
driver weakly. In a forked child there is no such thread; the child starts its own.
"""

from __future__ import annotations

import _thread
import os
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

from fastllm.engine import Engine
from fastllm.errors import FastLLMError, KernelError, RequestError
from fastllm.sequence import Sequence

# A sequence to add; something to call between two steps; None: look again.
Message = Sequence | Callable[[], object] | None

CLOSED = "this LLM is closed; open a new one"
CLOSED_MEANWHILE = "this LLM was closed while it answered"
LOST = "the request stayed with the process that forked this one: ask again"
# The interpreter ends: longer than any step that anybody should wait for.
EXIT_WAIT_S = 30.0


class Driver:
    """The callers' side; safe in any thread.

    Parameters
    ----------
    engine : Engine
        Owned by the driver's thread from here on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loop = _Loop(engine, self)
        # Newer than the finalizers of the runner, so that at exit this comes before them.
        weakref.finalize(self, _Loop.stop_at_exit, self._loop)
        _drivers.add(self)

    def check(self, seq: Sequence) -> None:
        """Refuse a sequence that can never run; the errors are those of `Engine.check`."""
        self.engine.check(seq)

    def submit(self, seq: Sequence, owner: object) -> None:
        """Queue a sequence; its events go to its sink.

        Parameters
        ----------
        owner : object
            Who can ask for the answer. When it is gone, the sequence ends.

        Raises
        ------
        RequestError
            The driver is closed; or, with `ContextLengthError`, those of `check`.
        """
        self.check(seq)
        loop = self._loop
        # The queue's own method, so that not even a finalizer runs any Python.
        seq.owner = weakref.ref(owner, loop.inbox.put)
        seq.submitted_s = self.engine.clock()
        if loop.closing:
            raise RequestError(CLOSED)
        loop.send(seq)

    def cancel(self, seq: Sequence) -> None:
        """Ask a sequence to end at the next step; safe in a signal handler."""
        if not (seq.cancelled or seq.ended):
            seq.cancelled = True
            self.wake()

    def wake(self) -> None:
        """Have the thread look again at cancelled and stalled sequences."""
        self._loop.inbox.put(None)

    def forget(self) -> None:
        """Drop the KV cache of the last answer, before whatever is asked next; never waits."""
        if not self._loop.closing:
            self._loop.inbox.put(self.engine.forget)

    def close(self) -> None:
        """Finish the step that runs, end everybody with an error, close the runner. Idempotent."""
        self._loop.close()


class _Loop:
    """What the thread holds; knows its driver weakly."""

    def __init__(self, engine: Engine, driver: Driver) -> None:
        self.engine = engine
        self.closing = False
        self._begin(driver)

    def _begin(self, driver: Driver) -> None:
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.driver = weakref.ref(driver, self.inbox.put)
        self.started = self.stopping = self.ended = False
        self._thread_id = 0
        self._only_one = _thread.allocate_lock()
        self._close_error: BaseException | None = None

    def send(self, message: Message) -> None:
        """Put a message where the thread finds it, and start the thread if there is none."""
        self.inbox.put(message)
        if not self.started:
            # One call into C, where threading.Thread.start could be interrupted half way. Two
            # callers at once start two, and the second one leaves.
            _thread.start_new_thread(self.live, ())
        if self.ended:
            raise RequestError(CLOSED)

    def close(self) -> None:
        self.closing = True  # before the message: who reads that sees this
        if _thread.get_ident() == self._thread_id:
            return  # a finalizer that happened to run in the thread: it ends after this step
        reply: SimpleQueue[None] = SimpleQueue()
        while not self.ended:
            try:
                self.send(lambda: reply.put(None))
            except RequestError:
                break
            except RuntimeError:  # the interpreter ends and starts no thread any more
                self.live()
                break
            reply.get()
        if self._close_error is not None:
            raise self._close_error

    def stop_at_exit(self) -> None:
        """Let the thread finish its step before the interpreter takes away what it works on."""
        if self.driver() is None:
            return  # dropped, not exiting: the thread has been woken and leaves by itself
        self.stopping = True
        if self.started and not self.ended and _thread.get_ident() != self._thread_id:
            reply: SimpleQueue[None] = SimpleQueue()
            self.inbox.put(lambda: reply.put(None))
            try:
                reply.get(timeout=EXIT_WAIT_S)
            except Empty:
                return

    def after_fork(self, driver: Driver) -> None:
        """Begin again in a child, where the thread does not exist; closed stays closed."""
        old, ended = self.inbox, self.ended
        self._begin(driver)
        self.ended = ended
        self.engine.abort(RequestError(LOST))
        while not old.empty():
            message = old.get_nowait()
            if isinstance(message, Sequence):
                message.fail(RequestError(LOST))

    # -- the thread ----------------------------------------------------------------------------
    def live(self) -> None:
        """Drive until told to stop."""
        if not self._only_one.acquire(blocking=False):
            return
        self.started, self._thread_id = True, _thread.get_ident()
        try:
            with self.engine.runner.own_thread():
                while self._turn():
                    pass
        finally:
            self._end()

    def _turn(self) -> bool:
        """Take what there is to take and run a step; False when it is time to leave."""
        if not self.inbox.empty():
            self._read()
        if self.closing or self.stopping or self.driver() is None:
            return False
        try:
            if not self.engine.step() and self.inbox.empty():
                self._obey(self.inbox.get())
        except Exception as error:  # noqa: BLE001  a fault of ours: everybody hears of it
            self.engine.abort(KernelError(f"the engine failed: {error!r}; ask again"))
        return True

    def _read(self) -> None:
        while not (self.closing or self.stopping or self.inbox.empty()):
            self._obey(self.inbox.get_nowait())

    def _obey(self, message: Message) -> None:
        self.engine.look_at_all()
        if self.closing or self.stopping:
            self.inbox.put(message)  # answered at the end
        elif isinstance(message, Sequence):
            self.engine.add(message)
        elif message is not None:
            message()

    def _end(self) -> None:
        error: FastLLMError = RequestError(CLOSED_MEANWHILE)
        self.engine.abort(error)
        if self.closing:
            try:
                self.engine.runner.close()
            except Exception as close_error:  # noqa: BLE001  raised where close was called
                self._close_error = close_error
        self.closing = self.ended = True
        # Who puts something here later sees `ended` afterwards.
        while not self.inbox.empty():
            message = self.inbox.get_nowait()
            if isinstance(message, Sequence):
                message.fail(error)
            elif message is not None:
                message()


_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()


def _after_fork() -> None:
    for driver in list(_drivers):
        driver._loop.after_fork(driver)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
