"""Forks: a child has one thread of its parent's, and whatever the others held stays held in it.

Locks of ours are made anew in the child (`Lock`). Python's own locks of modules that another thread
was importing are not: a child of such a moment could wait for ever as soon as it imports one. What
we import we import while a model loads, so such a child is told (`Imports`).
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType

from fastllm.errors import RequestError


class Lock:
    """A lock that a forked child gets anew: ``with lock.here: ...``.

    Attributes
    ----------
    here : threading.Lock
        The one of this process.
    """

    def __init__(self) -> None:
        self.here = threading.Lock()
        _locks.add(self)


class Imports:
    """Says, as long as it is entered (or lives), that this thread may be importing.

    Raises
    ------
    RequestError
        On entering: this process was forked while another thread did.
    """

    thread = 0

    def __enter__(self) -> None:
        if _stuck:
            raise RequestError(
                "this process was forked while another thread loaded a model, and the modules it "
                "was importing stay locked here: fork before or after, or start processes by "
                '"spawn"'
            )
        self.thread = threading.get_ident()
        _importing.add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _importing.discard(self)


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()
_importing: weakref.WeakSet[Imports] = weakref.WeakSet()
_stuck = False


def _after_fork() -> None:
    global _stuck
    here = threading.get_ident()
    _stuck = _stuck or any(each.thread != here for each in _importing)
    for lock in _locks:
        lock.here = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
