"""A memory cgroup for a test, v1 or v2, where this process may make one."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fastllm.machine.cgroups import own_groups


class MemoryGroup:
    """A new group below this process's own, with a hard limit and no swap.

    Raises
    ------
    OSError
        It cannot be made; the text says why.
    """

    def __init__(self, limit: int) -> None:
        groups = own_groups("memory")
        if not groups:
            raise OSError("no memory cgroups are mounted")
        group = groups[0]
        self._folder = Path(group.path[0]) / f"fastllm-test-{os.getpid()}"
        self._folder.mkdir()
        try:
            name = "memory.max" if group.version == 2 else "memory.limit_in_bytes"
            if not (self._folder / name).exists():
                raise OSError(f"{self._folder} has no memory controller")
            (self._folder / name).write_text(str(limit))
            swap, value = (
                ("memory.swap.max", "0")
                if group.version == 2
                else ("memory.memsw.limit_in_bytes", str(limit))
            )
            if (self._folder / swap).exists():
                (self._folder / swap).write_text(value)
        except OSError:
            self._folder.rmdir()
            raise

    def enter(self) -> None:
        """Move the calling process in; for `preexec_fn`."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> None:
        """Remove the group; the kernel may take a moment to see that its processes ended."""
        force = self._folder / "memory.force_empty"  # v1: drops cached pages
        for _ in range(50):
            try:
                if force.exists():
                    force.write_text("1")
                self._folder.rmdir()
                return
            except OSError:
                time.sleep(0.02)
