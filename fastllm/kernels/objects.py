"""The kernel cache: objects built once per machine, loaded without numba, mostly without LLVM.

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

import ctypes
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastllm.environment import home
from fastllm.errors import KernelError
from fastllm.forks import Lock
from fastllm.kernels import elf
from fastllm.kernels.road import Road, choose_road

Progress = Callable[[str, float], None]
_MAGIC = b"fastllm-object-2\n"
Objects = list[tuple[str, str, bytes]]
"""(function, its symbol, object code)"""
# Files of this folder that keep and load what others make: they do not decide what that is.
_KEEPERS = ("building.py", "elf.py", "objects.py")


def cache_root() -> Path:
    """Folder of the kernel cache."""
    return home() / "kernels"


def version(package: str) -> str:
    """Return the version of an installed package.

    From the name of the folder that pip leaves beside it: importlib.metadata alone imports as much
    as all of this package does (20 ms). It is asked where there is no such folder.
    """
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            if name.startswith(f"{package}-") and name.endswith(".dist-info"):
                return name[len(package) + 1 : -len(".dist-info")]
    from importlib import metadata

    return metadata.version(package)


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
        if name not in _KEEPERS:
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


def sealed(body: bytes) -> bytes:
    """Return what a cached file holds: `body` behind its checksum."""
    return _MAGIC + hashlib.sha256(body).digest() + body


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


class _Loader:
    """Units of this process, each loaded once."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.keep: list[Any] = []
        self.units: dict[tuple[str, str], dict[str, int]] = {}

    def load(self, unit: str, road: Road, objects: Objects) -> dict[str, int]:
        """Addresses of a unit's functions."""
        with self.lock.here:
            known = self.units.get((unit, road.name))
            if known is not None:
                return known
            keep, found = _place(objects)
            self.keep.append(keep)
            self.units[unit, road.name] = found
            return found


def _place(objects: Objects) -> tuple[Any, dict[str, int]]:
    """Put a unit into memory; what holds it there, and the addresses of its functions."""
    if elf.SUPPORTED:
        try:
            image = elf.Image([(symbol, code) for _, symbol, code in objects])
        except elf.NotPlain:
            pass  # LLVM knows every object
        except OSError as error:
            raise KernelError(f"kernels cannot be put into memory: {error}") from error
        else:
            names = (name for name, _, _ in objects)
            return image, dict(zip(names, image.addresses, strict=True))
    return _place_by_llvm(objects)


def _place_by_llvm(objects: Objects) -> tuple[Any, dict[str, int]]:
    import llvmlite.binding as llvm

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
    return engine, found


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
        from fastllm.kernels import building  # and with it all that a build takes

        found.update(building.build(missing, road, progress))
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
