"""Compile one unit into an object file: ``python -m fastllm.kernels.build UNIT OUT``.

Runs in a process of its own, so that the engine never imports numba. It compiles for one
road, that of its environment (``Road.environment``). The object needs no symbol
but libc's ``syscall``.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from fastllm.kernels.interpreter_codes import MATMUL_ARGS, PACK_ARGS, PICK_ARGS, STEP_ARGS
from fastllm.kernels.layouts import LAYOUTS


def unit_names() -> list[str]:
    """Every unit: the step, the packer, the sampler, one matrix product per weight format."""
    return ["step", "pack", "pick", *(f"mm_{name}" for name in LAYOUTS)]


def _function(unit: str) -> tuple[Any, int]:
    """Return (Python function of the unit, number of int64 arguments)."""
    if unit == "step":
        from fastllm.kernels import interpreter

        return interpreter.step, STEP_ARGS
    if unit == "pack":
        from fastllm.kernels import pack

        return pack.pack, PACK_ARGS
    if unit == "pick":
        from fastllm.kernels import pick

        return pick.pick, PICK_ARGS
    from fastllm.kernels import matmul

    return matmul.matmul(unit.removeprefix("mm_")), MATMUL_ARGS


def build(unit: str) -> tuple[bytes, str]:
    """Return (object code, name of the exported function) of `unit`.

    The function follows Numba's native convention:
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
    function, num_args = _function(unit)
    compile_extra: Any = compiler.compile_extra
    result = compile_extra(
        cpu_target.typing_context,
        cpu_target.target_context,
        function,
        (types.int64,) * num_args,
        types.int64,
        flags,
        {},
    )
    return result.library._get_compiled_object(), result.fndesc.llvm_func_name


def main(argv: list[str]) -> None:
    """Build argv = [unit, output path]; the last line of the file is the symbol."""
    unit, out = argv
    code, symbol = build(unit)
    with open(out, "wb") as file:
        file.write(symbol.encode() + b"\n" + code)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
