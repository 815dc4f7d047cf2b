"""The loops of `bench.limits`, as IR generators of (address, count)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from fastllm.kernels.emit import Emitter, Value, i8, v16i32, vec
from fastllm.kernels.target import VECTORS

Generator = Callable[[Emitter, Value, Value], None]


def read(stride: int) -> Generator:
    """Read `count` times `stride` bytes from the address on."""

    def generate(e: Emitter, start: Value, count: Value) -> None:
        def step(i: Value, sums: list[Value]) -> list[Value]:
            at = e.add(start, e.mul(i, stride))
            for piece in range(stride // 64):
                value = e.ordered_load(at, v16i32, 64 * piece, 64)
                chain = piece % len(sums)
                sums[chain] = e.b.xor(sums[chain], value)
            return sums

        sums = e.loop(count, [e.splat(0, v16i32)] * 4, step)
        total = sums[0]
        for other in sums[1:]:
            total = e.b.xor(total, other)
        e.store(total, start, 0, 64)  # or nothing would have to be read

    return generate


def multiply(chains: int) -> Generator:
    """`count` rounds of one vector dot product on each of `chains` sums."""

    def generate(e: Emitter, place: Value, count: Value) -> None:
        in_registers = VECTORS == "avx512"
        u = e.load(place, v16i32, 0, 64)
        s = e.load(place, v16i32, 64, 64)

        def step(_i: Value, sums: list[Value]) -> list[Value]:
            return [
                e.dp(total, u if in_registers else e.ordered_load(place, v16i32, 128, 64), s)
                for total in sums
            ]

        # chains start from different values, or LLVM would merge them
        start = [e.splat(chain, v16i32) for chain in range(chains)]
        for chain, total in enumerate(e.loop(count, start, step)):
            e.store(total, place, 1024 + 64 * chain, 64)

    return generate


def tiles(sums: int) -> Generator:
    """`count` rounds of one AMX product of whole tiles on each of `sums` tile registers."""

    def generate(e: Emitter, place: Value, count: Value) -> None:
        def tile(name: str, *arguments: Any) -> None:
            values = [e.c(a, i8) if isinstance(a, int) else a for a in arguments]
            kind = [value.type for value in values]
            e.b.call(e.fn(f"llvm.x86.{name}", ir.VoidType(), kind), values)

        def pointer(offset: int) -> Value:
            return e.b.inttoptr(e.add(place, offset), i8.as_pointer())

        # palette 1; eight tiles of 16 rows (bytes 48..55) of 64 bytes (16-bit words from byte 16)
        shapes = [1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8]
        whole = vec(i8, 64)
        e.store(ir.Constant(whole, [ir.Constant(i8, n) for n in shapes]), place, 4096, 64)
        tile("ldtilecfg", pointer(4096))
        for number in (0, 1):
            tile("tileloadd64", number, pointer(1024 * number), e.c(64))
        for number in range(sums):
            tile("tilezero", 2 + number)

        def step(_i: Value, _state: list[Value]) -> list[Value]:
            for number in range(sums):
                tile("tdpbusd", 2 + number, 0, 1)
            return []

        e.loop(count, [], step)
        tile("tilerelease")

    return generate
