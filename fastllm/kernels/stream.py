"""A panel read as the linear stream it is, so that the hardware prefetcher sees one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastllm.kernels.emit import Emitter, Value, v16f32, v16i16, v16i32


class Stream:
    """Loads of a panel, in the order of their addresses.

    Parameters
    ----------
    e : Emitter
    ahead : int
        Bytes between a load and the software prefetch beside it, 0 for none.
    in_registers : bool
        Whether pieces that are wanted several times are kept in registers; else each is loaded
        again where it is wanted, from first-level cache.
    """

    def __init__(self, e: Emitter, ahead: int = 0, in_registers: bool = True) -> None:
        self.e, self.ahead, self.in_registers = e, ahead, in_registers

    def load(self, address: Value, type_: Any, offset: Any, align: int) -> Value:
        """Next load of the stream, which asks for what comes `ahead` bytes later."""
        if self.ahead:
            self.e.prefetch(self.e.add(address, offset), self.ahead)
        return self.e.ordered_load(address, type_, offset, align)

    def piece(self, address: Value, offset: Any) -> Value:
        """One 64-byte piece: a dword of each row."""
        return self.load(address, v16i32, offset, 64)

    def again(self, address: Value, offset: Any) -> Value:
        """A piece that several steps of a unit read, so that it is no part of the stream."""
        return self.e.load(address, v16i32, offset, 64)

    def pieces(self, address: Value, offset: int, count: int) -> Callable[[int], Value]:
        """Pieces in a row, each of which is wanted several times: returns what gives piece n."""
        if self.in_registers:
            return [self.piece(address, offset + 64 * n) for n in range(count)].__getitem__
        return lambda n: self.again(address, offset + 64 * n)

    def half(self, address: Value, offset: Any) -> Value:
        """A half-precision field of each row, as float32."""
        return self.e.half_to_float(self.load(address, v16i16, offset, 32))

    def bfloat(self, address: Value, offset: Any) -> Value:
        """A bfloat16 field of each row, as float32."""
        return self.e.bfloat_to_float(self.load(address, v16i16, offset, 32))

    def single(self, address: Value, offset: Any) -> Value:
        """A float32 of each row."""
        return self.load(address, v16f32, offset, 64)

    def short(self, address: Value, offset: Any) -> Value:
        """A 16-bit field of each row, unsigned, as a dword."""
        return self.e.b.zext(self.load(address, v16i16, offset, 32), v16i32)
