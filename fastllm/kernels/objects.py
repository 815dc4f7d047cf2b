"""The kernel cache: objects built once per machine, loaded by llvmlite alone.

A unit (``step``, ``pack``, ``ops_rows``, ``mm_q4_1``, ...) is one file of object code, of one
function or several, ``$FASTLLM_HOME/kernels/<key>/<road>-<unit>.o``. The key is a hash of every
source that decides what is compiled, and of the versions of Python, numba and llvmlite. A stale
file therefore is never found, versions live side by side, and a file is written beside and renamed,
with a checksum inside, so concurrent first starts and torn writes end in a good file or in a new
build. Where nothing can be written the object lives in memory.

Numba's own cache is not used: its key sees one source file, so a changed intrinsic in another file
would run stale code.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastllm.errors import KernelError
from fastllm.kernels.road import Road, choose_road
from fastllm.machine.cpus import default_threads
from fastllm.machine.memory import available_bytes

Progress = Callable[[str, float], None]
_MAGIC = b"fastllm-object-2\n"
Objects = list[tuple[str, str, bytes]]
"""(function, its symbol, object code)"""
_BUILD_TIMEOUT_S = 600
_BUILD_BYTES = 250_000_000  # of one build: numba, LLVM and what they compile


def cache_root() -> Path:
    """Folder of the kernel cache."""
    home = os.environ.get("FASTLLM_HOME")
    if home:
        return Path(home) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "fastllm" / "kernels"


@lru_cache(maxsize=1)
def source_key() -> str:
    """Hash of everything that decides what the objects contain."""
    digest = hashlib.sha256()
    for part in ("numba", "llvmlite"):
        digest.update(f"{part}={version(part)};".encode())
    digest.update(f"{platform.python_version()};{platform.machine()};{sys.platform}".encode())
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if name != "objects.py":  # it keeps and loads what others make
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def object_path(unit: str, road: Road) -> Path:
    """Where the object of `unit` lives."""
    return cache_root() / source_key() / f"{road.name}-{unit}.o"


def pack_objects(objects: Objects) -> bytes:
    """Body of a unit's file: a line of JSON, then the object code of its functions."""
    head = [[name, symbol, len(code)] for name, symbol, code in objects]
    return json.dumps(head).encode() + b"\n" + b"".join(code for _, _, code in objects)


def unpack_objects(body: bytes) -> Objects:
    """The reverse of `pack_objects`."""
    head, _, rest = body.partition(b"\n")
    out, at = [], 0
    for name, symbol, size in json.loads(head):
        out.append((name, symbol, rest[at : at + size]))
        at += size
    return out


def _read(path: Path) -> Objects | None:
    """What a cached file holds, or None if it is missing or damaged."""
    try:
        blob = path.read_bytes()
    except OSError:
        return None
    if not blob.startswith(_MAGIC) or len(blob) < len(_MAGIC) + 32:
        return None
    checksum, body = blob[len(_MAGIC) : len(_MAGIC) + 32], blob[len(_MAGIC) + 32 :]
    if hashlib.sha256(body).digest() != checksum:
        return None
    return unpack_objects(body)


def _write(path: Path, body: bytes) -> None:
    """Write a cached object beside and rename; a folder that cannot be written is no error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(body).digest() + body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise


def _build(unit: str, road: Road) -> Objects:
    """Compile `unit` in a subprocess."""
    with tempfile.TemporaryDirectory(prefix="fastllm-build-") as folder:
        out = os.path.join(folder, "object")
        env = {
            **os.environ,
            **road.environment(),
            "NUMBA_CACHE_DIR": folder,
            "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
        }
        command = [sys.executable, "-m", "fastllm.kernels.build", unit, out]
        try:
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S
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
    _write(object_path(unit, road), body)
    return unpack_objects(body)


def _ending(returncode: int) -> str:
    """How a build ended that wrote nothing."""
    if returncode == -signal.SIGKILL:
        return f"it was killed; a build takes up to {_BUILD_BYTES // 1_000_000} MB of memory"
    return f"no output, status {returncode}"


def build_processes(num_units: int) -> int:
    """How many builds run at once: one for each core this process may use, as memory allows."""
    return max(1, min(num_units, default_threads(), available_bytes() // _BUILD_BYTES))


class _Loader:
    """Units of this process, each loaded once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.keep: list[Any] = []
        self.units: dict[tuple[str, str], dict[str, int]] = {}

    def load(self, unit: str, road: Road, objects: Objects) -> dict[str, int]:
        """Addresses of a unit's functions."""
        import llvmlite.binding as llvm

        with self.lock:
            known = self.units.get((unit, road.name))
            if known is not None:
                return known
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            # one execution engine a unit: symbol names of two units may be equal
            target = llvm.Target.from_default_triple().create_target_machine(jit=True)
            engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
            for _, _, code in objects:
                engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            engine.finalize_object()
            found = {}
            for name, symbol, _ in objects:
                found[name] = int(engine.get_function_address(symbol))
                if not found[name]:
                    raise KernelError(f"kernel {name}: symbol not found; remove {cache_root()}")
            self.keep.append(engine)
            self.units[unit, road.name] = found
            return found


_LOADER = _Loader()


def addresses(
    units: Iterable[str], road: Road | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Machine addresses of the functions of `units`, by name; built where the cache has none.

    `progress` is called with (what is being built, share done).
    """
    road = road or choose_road()
    units = list(dict.fromkeys(units))
    found: dict[str, Objects] = {}
    missing = []
    for unit in units:
        if (unit, road.name) in _LOADER.units:
            continue
        cached = _read(object_path(unit, road))
        if cached is None:
            missing.append(unit)
        else:
            found[unit] = cached
    if missing:
        done = 0
        if progress:
            progress("compiling kernels for this machine (once)", 0.0)
        with ThreadPoolExecutor(build_processes(len(missing))) as pool:
            jobs = {unit: pool.submit(_build, unit, road) for unit in missing}
            for unit, job in jobs.items():
                found[unit] = job.result()
                done += 1
                if progress:
                    progress(f"compiled {unit}", done / len(missing))
    out: dict[str, int] = {}
    for unit in units:
        known = _LOADER.units.get((unit, road.name))
        out.update(known if known is not None else _LOADER.load(unit, road, found[unit]))
    return out


def callable_at(address: int, num_args: int) -> Callable[..., int]:
    """Make a Python callable of a unit; ctypes drops the GIL around the call."""
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *([ctypes.c_int64] * num_args)
    )
    function = prototype(address)

    def call(*args: int) -> int:
        result, exception = ctypes.c_int64(), ctypes.c_void_p()
        function(ctypes.addressof(result), ctypes.addressof(exception), *args)
        return result.value

    return call


def warmup(progress: Progress | None = None) -> dict[str, str]:
    """Build everything this machine's road may need; {unit: path of its object}."""
    from fastllm.kernels.build import unit_names

    road = choose_road()
    addresses(unit_names(), road, progress)
    return {unit: str(object_path(unit, road)) for unit in unit_names()}
