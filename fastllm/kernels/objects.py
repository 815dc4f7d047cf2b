"""The kernel cache: objects built once per machine, loaded by llvmlite alone.

A unit (``step``, ``pack``, ``mm_q4_1``, ...) is one object file in
``$FASTLLM_HOME/kernels/<key>/<road>-<unit>.o``, key = hash of every kernel source and of the
versions of Python, numba and llvmlite. A stale file therefore is never found, versions live side by
side, and a file is written beside and renamed, with a checksum inside, so concurrent first starts
and torn writes end in a good file or in a new build. Where nothing can be written the object lives
in memory.

Numba's own cache is not used: its key sees one source file, so a changed intrinsic in another file
would run stale code.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
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

Progress = Callable[[str, float], None]
_MAGIC = b"fastllm-object-1\n"
_BUILD_TIMEOUT_S = 600


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
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def object_path(unit: str, road: Road) -> Path:
    """Where the object of `unit` lives."""
    return cache_root() / source_key() / f"{road.name}-{unit}.o"


def _read(path: Path) -> tuple[str, bytes] | None:
    """(symbol, object code) of a cached object, or None if it is missing or damaged."""
    try:
        blob = path.read_bytes()
    except OSError:
        return None
    if not blob.startswith(_MAGIC) or len(blob) < len(_MAGIC) + 32:
        return None
    checksum, body = blob[len(_MAGIC) : len(_MAGIC) + 32], blob[len(_MAGIC) + 32 :]
    if hashlib.sha256(body).digest() != checksum:
        return None
    symbol, _, code = body.partition(b"\n")
    return symbol.decode(), code


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


def _build(unit: str, road: Road) -> tuple[str, bytes]:
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
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise KernelError(
                f"kernel {unit} ({road.name}) could not be built: {last}; "
                "see it with: fastllm -v warmup"
            )
        body = Path(out).read_bytes()
    _write(object_path(unit, road), body)
    symbol, _, code = body.partition(b"\n")
    return symbol.decode(), code


class _Loader:
    """Objects of this process, each loaded once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engine: Any = None
        self.keep: list[Any] = []
        self.addresses: dict[tuple[str, str], int] = {}

    def load(self, unit: str, road: Road, symbol: str, code: bytes) -> int:
        import llvmlite.binding as llvm

        with self.lock:
            known = self.addresses.get((unit, road.name))
            if known is not None:
                return known
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            # one execution engine an object: symbol names of two units may be equal
            target = llvm.Target.from_default_triple().create_target_machine(jit=True)
            engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
            engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            engine.finalize_object()
            address = engine.get_function_address(symbol)
            if not address:
                raise KernelError(f"kernel {unit}: symbol not found; remove {cache_root()}")
            self.keep.append(engine)
            self.addresses[unit, road.name] = int(address)
            return int(address)


_LOADER = _Loader()


def addresses(
    units: Iterable[str], road: Road | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Machine addresses of `units`, built (two at a time) where the cache has none.

    `progress` is called with (what is being built, share done).
    """
    road = road or choose_road()
    units = list(dict.fromkeys(units))
    found: dict[str, tuple[str, bytes]] = {}
    missing = []
    for unit in units:
        if (unit, road.name) in _LOADER.addresses:
            continue
        cached = _read(object_path(unit, road))
        if cached is None:
            missing.append(unit)
        else:
            found[unit] = cached
    if missing:
        done = 0
        workers = max(1, min(len(missing), os.cpu_count() or 1, 4))
        if progress:
            progress("compiling kernels for this machine (once)", 0.0)
        with ThreadPoolExecutor(workers) as pool:
            jobs = {unit: pool.submit(_build, unit, road) for unit in missing}
            for unit, job in jobs.items():
                found[unit] = job.result()
                done += 1
                if progress:
                    progress(f"compiled {unit}", done / len(missing))
    out = {}
    for unit in units:
        known = _LOADER.addresses.get((unit, road.name))
        out[unit] = known if known is not None else _LOADER.load(unit, road, *found[unit])
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
