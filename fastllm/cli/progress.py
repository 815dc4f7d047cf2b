"""Progress on stderr: a bar for a person, nothing for a pipe unless it takes long.

Most loads take less than half a second and show nothing; rich is imported only for a bar.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PATIENCE_S = 0.4
_LOG_EVERY_S = 10.0


class ProgressLine:
    """Shows ``(label, fraction)`` calls; a context manager, itself the callable."""

    def __init__(self) -> None:
        self._started_s = self._logged_s = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, label: str, fraction: float) -> None:
        """Note that the step called `label` has come to `fraction` (0 to 1)."""
        now = time.monotonic()
        if label != self._label:
            self._label, self._started_s, self._task = label, now, None
            if self._bar is not None:
                self._task = self._bar.add_task(label, total=1.0)
        if self._is_terminal:
            self._show(label, fraction, now)
        elif now - max(self._logged_s, self._started_s) >= _LOG_EVERY_S:
            self._logged_s = now
            print(f"{label}: {fraction:.0%}", file=sys.stderr, flush=True)

    def _show(self, label: str, fraction: float, now: float) -> None:
        if self._bar is None:
            if now - self._started_s < _PATIENCE_S or fraction >= 1:
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
            self._bar.start()
        if self._task is None:
            self._task = self._bar.add_task(label, total=1.0)
        self._bar.update(self._task, completed=min(max(fraction, 0.0), 1.0))

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
