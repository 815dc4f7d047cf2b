"""Answers for asyncio: the driver's thread tells the event loop, and no thread waits.

A task that is cancelled while it waits here ends its request, as forgetting the object does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from fastllm.answers import Answer, submit
from fastllm.driver import Driver
from fastllm.errors import FastLLMError, RequestError
from fastllm.events import Held, Unread
from fastllm.request import Chunk, Completion
from fastllm.sequence import Sequence


class Bell:
    """An `asyncio.Event` that any thread may set; belongs to the loop it is made in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Set the event soon; nothing happens where the loop is closed already."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    def check(self) -> None:
        """Refuse to be waited for in another loop, where nothing would ever ring.

        Raises
        ------
        RequestError
            This is another event loop.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise RequestError(
                "this stream belongs to the event loop that astream was awaited in: read it there, "
                "or ask for one in this loop"
            )

    async def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`; who makes it so must ring afterwards."""
        while not ready():
            self._event.clear()
            if ready():
                return
            await self._event.wait()


async def aresults(answers: list[Answer], bell: Bell) -> list[Completion]:
    """Queue answers that ring `bell`, await all and return them; `results` for asyncio."""
    try:
        submit(answers)
        for answer in answers:
            await bell.wait(answer.done)
        return [answer.result() for answer in answers]
    finally:
        for answer in answers:
            answer.cancel()


class AsyncStream(AsyncIterator[Chunk], Held):
    """An answer on its way: an asynchronous iterator of `Chunk`.

    Leaving ``async with`` or `aclose` ends the request at once; so does cancelling the task that
    waits for it, or forgetting the object.
    """

    def __init__(self, driver: Driver, seq: Sequence, unread: Unread, bell: Bell) -> None:
        self._driver, self._seq, self._unread, self._bell = driver, seq, unread, bell
        self._finished = False
        driver.submit(seq, self)

    async def __anext__(self) -> Chunk:
        self._bell.check()  # the stream is as it was for who reads it where it belongs
        try:
            while not self._finished:
                await self._bell.wait(lambda: self._unread.pending)
                event = self._unread.take(wait=False)
                if self._seq.stalled:
                    self._driver.wake()
                if self._finished:
                    break
                if isinstance(event, FastLLMError):
                    raise event
                if event is not None:
                    if event.finish_reason is not None:
                        self._end()
                    return event
        except BaseException:
            self.close()
            raise
        self._end()
        raise StopAsyncIteration

    def cancel(self) -> None:
        """End the answer at the next step; the last chunk says "cancelled"."""
        self._driver.cancel(self._seq)

    def close(self) -> None:
        """End the answer and yield nothing more."""
        self.cancel()
        self._end()

    async def aclose(self) -> None:
        """End the answer and yield nothing more."""
        self.close()

    def _end(self) -> None:
        self._finished = True
        self._unread.put(None)  # other tasks that wait for the same stream

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
