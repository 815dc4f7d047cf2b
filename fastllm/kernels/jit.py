"""How every kernel is compiled: one set of Numba flags, addresses as int64, no Python in sight.

No fast-math: the order of float operations is part of the result. Errors cannot arise inside
(``error_model="numpy"``, no bounds checks, no allocation), so there is nothing to raise.

Only a build process knows numba. An op's words are needed elsewhere, too, so a file of
``kernels.ops`` imports what it compiles with under ``if COMPILING``, and its `run` stays an
ordinary function that nobody calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from fastllm.kernels.road import BUILD_ROAD

COMPILING = BUILD_ROAD in os.environ
F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function of int64 and float values; typed here so that mypy sees through."""
    if not COMPILING:
        return function
    from numba import njit

    options: Any = njit(nogil=True, error_model="numpy", boundscheck=False, fastmath=False)
    result: F = options(function)
    return result
