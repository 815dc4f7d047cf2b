"""Building what the kernel cache lacks: every unit in a process of its own, then kept.

Imported only where something is missing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastllm.errors import KernelError
from fastllm.kernels.objects import Objects, object_path, sealed, unpack_objects
from fastllm.kernels.road import Road
from fastllm.machine.cpus import default_threads
from fastllm.machine.memory import available_bytes

Progress = Callable[[str, float], None]
_TIMEOUT_S = 600
_BUILD_BYTES = 250_000_000  # of one build: numba, LLVM and what they compile


def build(units: Sequence[str], road: Road, progress: Progress | None) -> dict[str, Objects]:
    """Compile units, keep them, and return them.

    Raises
    ------
    KernelError
        A unit cannot be built.
    """
    if progress:
        progress("compiling kernels for this machine (once)", 0.0)
    built: dict[str, Objects] = {}
    with ThreadPoolExecutor(build_processes(len(units))) as pool:
        jobs = {unit: pool.submit(build_one, unit, road) for unit in units}
        for unit, job in jobs.items():
            built[unit] = job.result()
            if progress:
                progress(f"compiled {unit}", len(built) / len(units))
    return built


def build_processes(num_units: int) -> int:
    """How many builds run at once: one for each core this process may use, as memory allows."""
    return max(1, min(num_units, default_threads(), available_bytes() // _BUILD_BYTES))


def build_one(unit: str, road: Road) -> Objects:
    """Compile `unit` in a subprocess."""
    with tempfile.TemporaryDirectory(prefix="fastllm-build-") as folder:
        out = os.path.join(folder, "object")
        # What is built is decided by the road and our flags: not by the user's settings of Numba,
        # be they variables or, in the working folder, a file.
        env = {
            **{name: value for name, value in os.environ.items() if name[:6] != "NUMBA_"},
            **road.environment(),
            "NUMBA_CACHE_DIR": folder,
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        }
        command = [sys.executable, "-m", "fastllm.kernels.build", unit, out]
        try:
            done = subprocess.run(
                command, cwd=folder, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"kernel {unit} ({road.name}) could not be built: {error}") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [_ending(done.returncode)])[-1]
            raise KernelError(
                f"kernel {unit} ({road.name}) could not be built: {last}; "
                "see it with: fastllm -v warmup"
            ) from RuntimeError(f"the build wrote:\n{done.stderr}")
        body = Path(out).read_bytes()
    write(object_path(unit, road), body)
    return unpack_objects(body)


def _ending(returncode: int) -> str:
    """How a build ended that wrote nothing."""
    if returncode == -9:  # SIGKILL, which not every system has a name for
        return f"it was killed; a build takes up to {_BUILD_BYTES // 1_000_000} MB of memory"
    return f"no output, status {returncode}"


def write(path: Path, body: bytes) -> None:
    """Write a cached object beside and rename; a folder that cannot be written is no error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(sealed(body))
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
