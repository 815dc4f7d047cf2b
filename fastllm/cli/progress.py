"""Progress on stderr: a bar for a person, now and then a line for a log.

Most loads take less than half a second and show nothing; rich is imported only for a bar.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR_AFTER_S = 0.4
LINE_AFTER_S = 3.0
LINE_EVERY_S = 10.0


class ProgressLine:
    """Shows ``(label, fraction)`` calls; a context manager, itself the callable.

    A timer decides when to begin, not the next call: compiling says "0 %" and is then silent for
    seconds. Safe from several threads.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._label, self._fraction = "", 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next_line_s = float("inf")

    def __call__(self, label: str, fraction: float) -> None:
        """Note that the step called `label` has come to `fraction` (0 to 1)."""
        with self._lock:
            self._label, self._fraction = label, min(max(fraction, 0.0), 1.0)
            if self._timer is None:
                wait_s = BAR_AFTER_S if self._is_terminal else LINE_AFTER_S
                self._timer = threading.Timer(wait_s, self._begin)
                self._timer.daemon = True
                self._timer.start()
            elif self._bar is not None and self._task is not None:
                self._bar.update(self._task, description=label, completed=self._fraction)
            elif time.monotonic() >= self._next_line_s:
                self._line()

    def _begin(self) -> None:
        with self._lock:
            if self._timer is None:  # ended in the meantime
                return
            if not self._is_terminal:
                self._line()
                return
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn

            self._bar = Progress(
                "{task.description}",
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._label, total=1.0)
            self._bar.update(self._task, completed=self._fraction)
            self._bar.start()

    def _line(self) -> None:
        self._next_line_s = time.monotonic() + LINE_EVERY_S
        print(f"{self._label}: {self._fraction:.0%}", file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
