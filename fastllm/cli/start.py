"""Where the process begins: signals are ours before anything slow is imported."""

from __future__ import annotations

import gc
import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    # Nothing is open or half-written yet; `process.prepare` puts in handlers that unwind.
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    # Of SIGHUP the system's own handler does as much.
    # 100,000 strings and tuples of a vocabulary come, and none goes: with the thresholds that fit
    # ordinary programs the collector looks for garbage among them 160 times (25 ms).
    gc.set_threshold(50_000, 20, 50)
    # NumPy multiplies no matrices here; the library beneath it need not start a thread a core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from fastllm.cli import main as command_line

    command_line.main()


def _leave(number: int, _frame: FrameType | None) -> None:
    try:
        if number == signal.SIGINT:
            os.write(2, b"interrupted\n")
    finally:  # also where nobody can hear it
        os._exit(128 + number)
