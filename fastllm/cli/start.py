"""Where the process begins: signals are ours before anything slow is imported."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    # Nothing is open or half-written yet; `process.prepare` puts in handlers that unwind.
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    from fastllm.cli import main as command_line

    command_line.main()


def _leave(number: int, _frame: FrameType | None) -> None:
    try:
        if number == signal.SIGINT:
            os.write(2, b"interrupted\n")
    finally:  # also where nobody can hear it
        os._exit(128 + number)
