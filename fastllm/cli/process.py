"""The process around a command: standard streams that exist, signals that end it cleanly."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


class Terminated(BaseException):
    """SIGTERM, or SIGHUP: unwinds like Ctrl-C, so that half-written files are removed.

    Attributes
    ----------
    number : int
        Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Messages(io.TextIOWrapper):
    """A stderr that nobody can read any more loses its messages; the command goes on."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def prepare() -> None:
    """Give the process three standard streams and the handlers of its signals.

    A closed descriptor is opened on the null device the wrong way round, so that using it is an
    error of the system as every other, and no file of ours gets its number.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number: this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  lives as long as the process
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
    if sys.stderr is None or isinstance(sys.stderr, io.TextIOWrapper):
        encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        raw = io.FileIO(2, "w", closefd=False)
        sys.stderr = _Messages(
            raw, encoding=encoding, errors="backslashreplace", write_through=True
        )
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What is typed is checked and refused by name, whatever the locale calls it.
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _terminate)


def leave(code: int) -> NoReturn:
    """End the process; interrupts can no longer make a traceback of the end.

    Not by way of the interpreter's own end, which frees a vocabulary string by string (50 ms): all
    that is open is closed by now, and the system takes back the memory as a whole.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if code < 128:  # who interrupts does not want to wait, for libraries' threads or for a reader
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # `main.run` has said what fails
                stream.flush()
    os._exit(code)


def silence_stdout() -> None:
    """Point stdout at nothing, so that the flush at exit does not fail again."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # A second Ctrl-C does not wait for what the first one is ending.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    raise KeyboardInterrupt


def _terminate(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Terminated(number)
