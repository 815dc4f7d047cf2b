"""How every kernel is compiled: one set of Numba flags, addresses as int64, no Python in sight.

No fast-math: the order of float operations is part of the result. Errors cannot arise inside
(``error_model="numpy"``, no bounds checks, no allocation), so there is nothing to raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function of int64 and float values; typed here so that mypy sees through."""
    options: Any = njit(nogil=True, error_model="numpy", boundscheck=False, fastmath=False)
    result: F = options(function)
    return result
