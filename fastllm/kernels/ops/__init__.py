"""The operations of a step, one file each: its words, and the `run` that reads them.

``run(context, op, tid)`` does thread `tid`'s share of the op whose words begin at `op`, and returns
a `Failure`. The table of operations holds its address, so the loop that calls it knows no op.
"""

from __future__ import annotations

from fastllm.kernels.ops.activate import Activate
from fastllm.kernels.ops.add import Add
from fastllm.kernels.ops.attention import Attention
from fastllm.kernels.ops.matmul import Matmul
from fastllm.kernels.ops.merge import Merge
from fastllm.kernels.ops.norm import Norm
from fastllm.kernels.ops.quantize import Quantize
from fastllm.kernels.ops.rope import Rope
from fastllm.kernels.ops.softcap import Softcap
from fastllm.kernels.words import Words

__all__ = [
    "UNITS",
    "Activate",
    "Add",
    "Attention",
    "Matmul",
    "Merge",
    "Norm",
    "Quantize",
    "Rope",
    "Softcap",
    "op_name",
]

# Object files of ops (`Matmul` has one a weight format). Compiled in one process each: importing
# numba costs as much as an op.
UNITS: dict[str, tuple[type[Words], ...]] = {
    "ops_rows": (Norm, Activate, Add, Quantize, Softcap),
    "ops_attention": (Rope, Attention, Merge),
}


def op_name(op: type[Words]) -> str:
    """Name of an op's function: that of its file."""
    return op.__module__.rpartition(".")[2]
