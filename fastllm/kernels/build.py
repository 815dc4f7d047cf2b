"""Compile one unit into an object file: ``python -m fastllm.kernels.build UNIT OUT``.

Runs in a process of its own, so that the engine never imports numba. It compiles for one
road, that of its environment (``Road.environment``). The object needs no symbol
but libc's ``syscall``.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from fastllm.kernels.interpreter_codes import OP_ARGS, PACK_ARGS, PICK_ARGS, STEP_ARGS
from fastllm.kernels.layouts import LAYOUTS
from fastllm.kernels.objects import pack_objects
from fastllm.kernels.ops import UNITS, op_name


def unit_names() -> list[str]:
    """Every unit: step, packer, sampler, groups of ops, one matrix product per weight format."""
    return ["step", "pack", "pick", *UNITS, *(f"mm_{name}" for name in LAYOUTS)]


def _functions(unit: str) -> dict[str, tuple[Any, int]]:
    """Name of each function of a unit: (the Python function, number of int64 arguments)."""
    if unit == "step":
        from fastllm.kernels import interpreter

        return {unit: (interpreter.step, STEP_ARGS)}
    if unit == "pack":
        from fastllm.kernels import pack

        return {unit: (pack.pack, PACK_ARGS)}
    if unit == "pick":
        from fastllm.kernels import pick

        return {unit: (pick.pick, PICK_ARGS)}
    if unit in UNITS:
        files = {op_name(op): import_module(op.__module__) for op in UNITS[unit]}
        return {name: (file.run, OP_ARGS) for name, file in files.items()}
    from fastllm.kernels.ops import matmul

    return {unit: (matmul.run_of(unit.removeprefix("mm_")), OP_ARGS)}


def build(unit: str) -> list[tuple[str, str, bytes]]:
    """Return (function, its symbol, object code) of each function of `unit`.

    A function follows Numba's native convention:
    ``int32 f(int64 *result, void **exception, int64 ...)``.
    """
    from numba.core import compiler, types
    from numba.core.registry import cpu_target

    flags: Any = compiler.Flags()  # type: ignore[no-untyped-call]
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    flags.release_gil = True
    flags.enable_pyobject = False
    built = []
    for name, (function, num_args) in _functions(unit).items():
        compile_extra: Any = compiler.compile_extra
        result = compile_extra(
            cpu_target.typing_context,
            cpu_target.target_context,
            getattr(function, "py_func", function),
            (types.int64,) * num_args,
            types.int64,
            flags,
            {},
        )
        code = result.library._get_compiled_object()
        built.append((name, result.fndesc.llvm_func_name, code))
    return built


def main(argv: list[str]) -> None:
    """Build argv = [unit, output path]."""
    unit, out = argv
    with open(out, "wb") as file:
        file.write(pack_objects(build(unit)))
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
