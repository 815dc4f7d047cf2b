"""Emitter: a small language over llvmlite's IRBuilder in which the kernels are written.

Design
------
* An address is an int64 value; an offset is a Python int or an int64 value. No Numba arrays reach
  a kernel, so typing is quick and one table of addresses can describe a whole model.
* A kernel is a Python *generator of IR*: tile sizes are Python ints and unroll, loops over the
  long axis are real loops (`Emitter.loop`). `kernel` wraps it as a Numba intrinsic, which is
  inlined where it is called.
* One source, every road; a build process knows its own (``kernels.target``). Only dot products,
  table look-ups and half-precision conversion differ; everything else is plain vector IR that LLVM
  lowers for any CPU. Vectors are 16 lanes wide on every road (LLVM splits them where registers are
  narrower), so one packed layout serves all.
* Multiply-add is `llvm.fma` where the road has the instruction and two roundings where it has not.
  Never `llvm.fmuladd`: LLVM may fuse it in one place and not in another, and results must not
  depend on which tile computed them.
* No libm: a call such as expf would be an undefined symbol in the object file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from fastllm.kernels.target import HAS_FMA, VECTORS

Value = Any  # an llvmlite SSA value; llvmlite ships no types

i1, i8, i16, i32, i64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
f16, f32 = ir.HalfType(), ir.FloatType()


def vec(element: Any, count: int) -> Any:
    """LLVM vector type of `count` elements."""
    return ir.VectorType(element, count)


v16i32, v16f32, v16i16 = vec(i32, 16), vec(f32, 16), vec(i16, 16)
v64i8, v32i16 = vec(i8, 64), vec(i16, 32)


class Emitter:
    """Writes IR at the current position of `builder` for the road of this process."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    # ---------------------------------------------------------------- constants and addresses
    def c(self, value: int, type_: Any = i64) -> Value:
        """Scalar integer constant."""
        return ir.Constant(type_, value)

    def splat(self, value: Any, type_: Any) -> Value:
        """Vector with `value` (Python number or scalar SSA value) in every lane."""
        if isinstance(value, (int, float)):
            return ir.Constant(type_, [ir.Constant(type_.element, value)] * type_.count)
        undef = ir.Constant(type_, ir.Undefined)
        one = self.b.insert_element(undef, value, ir.Constant(i32, 0))
        return self.shuf(one, None, [0] * type_.count)

    def add(self, a: Any, b: Any) -> Any:
        """Sum of two int64, either of which may be a Python int."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if isinstance(b, int) and b == 0:
            return a
        a, b = (self.c(x) if isinstance(x, int) else x for x in (a, b))
        return self.b.add(a, b)

    def mul(self, a: Any, b: Any) -> Any:
        """Product of two int64, either of which may be a Python int."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        a, b = (self.c(x) if isinstance(x, int) else x for x in (a, b))
        return self.b.mul(a, b)

    # ---------------------------------------------------------------- memory
    def ptr(self, address: Value, type_: Any, offset: Any = 0) -> Value:
        """Typed pointer."""
        return self.b.inttoptr(self.add(address, offset), type_.as_pointer())

    def load(self, address: Value, type_: Any, offset: Any = 0, align: int = 4) -> Value:
        """Load; `align` in bytes must be true."""
        return self.b.load(self.ptr(address, type_, offset), align=align)

    def store(self, value: Value, address: Value, offset: Any = 0, align: int = 4) -> None:
        """Store; `align` in bytes must be true."""
        self.b.store(value, self.ptr(address, value.type, offset), align=align)

    def ordered_load(self, address: Value, type_: Any, offset: Any = 0, align: int = 4) -> Value:
        """Load that LLVM may not move across its neighbours.

        Its scheduler shuffles loads over a whole basic block, and then the hardware prefetcher no
        longer sees a stream: 60-82 % of the read rate instead of 100 % for K-quants.
        """
        value = self.load(address, type_, offset, align)
        nothing = ir.FunctionType(ir.VoidType(), [])
        self.b.asm(nothing, "", "~{memory}", [], True)
        return value

    def bcast(self, address: Value, type_: Any, offset: Any = 0) -> Value:
        """Load one element and splat it (folds into an embedded broadcast)."""
        return self.splat(self.load(address, type_.element, offset, 4), type_)

    def prefetch(
        self, address: Value, offset: Any = 0, locality: int = 2, write: bool = False
    ) -> None:
        """Software prefetch; locality 2 is the second-level cache."""
        pointer = i8.as_pointer()
        fn = self.fn("llvm.prefetch.p0", ir.VoidType(), [pointer, i32, i32, i32])
        where = self.b.inttoptr(self.add(address, offset), pointer)
        intent = self.c(int(write), i32)
        self.b.call(fn, [where, intent, self.c(locality, i32), self.c(1, i32)])

    # ---------------------------------------------------------------- calls
    def fn(self, name: str, ret: Any, args: Sequence[Any]) -> Any:
        """Declare (once) and return a function of the module."""
        module = self.b.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(ret, args), name)

    def call(self, name: str, ret: Any, *args: Value) -> Value:
        """Call an LLVM intrinsic by its full name."""
        return self.b.call(self.fn(name, ret, [a.type for a in args]), args)

    # ---------------------------------------------------------------- shuffles
    def shuf(self, a: Value, b: Value | None, index: Iterable[int]) -> Value:
        """Shuffle with a constant mask."""
        mask = [ir.Constant(i32, int(i)) for i in index]
        other = ir.Constant(a.type, ir.Undefined) if b is None else b
        return self.b.shuffle_vector(a, other, ir.Constant(vec(i32, len(mask)), mask))

    def half(self, a: Value, high: int) -> Value:
        """Lower (0) or upper (1) half of a vector."""
        n = a.type.count // 2
        return self.shuf(a, None, range(n * high, n * high + n))

    def join(self, low: Value, high: Value) -> Value:
        """Concatenate two equal vectors."""
        return self.shuf(low, high, range(2 * low.type.count))

    # ---------------------------------------------------------------- integer helpers
    def k(self, value: int) -> Value:
        """The 32-bit pattern `value` in 16 lanes."""
        return self.splat(value - (1 << 32) if value >> 31 else value, v16i32)

    def shr(self, v: Value, amount: Any) -> Value:
        """Logical right shift of 16 dwords by a Python int or an int64 value."""
        if isinstance(amount, int):
            return self.b.lshr(v, self.splat(amount, v16i32)) if amount else v
        return self.b.lshr(v, self.splat(self.b.trunc(amount, i32), v16i32))

    def shl(self, v: Value, amount: int) -> Value:
        """Left shift of 16 dwords."""
        return self.b.shl(v, self.splat(amount, v16i32)) if amount else v

    def sar(self, v: Value, amount: int) -> Value:
        """Arithmetic right shift of 16 dwords."""
        return self.b.ashr(v, self.splat(amount, v16i32)) if amount else v

    def byte(self, v: Value, index: Any) -> Value:
        """Unsigned byte `index` (0..3; Python int or int64) of every dword."""
        shift = index * 8 if isinstance(index, int) else self.mul(index, 8)
        return self.b.and_(self.shr(v, shift), self.k(255))

    # ---------------------------------------------------------------- float helpers
    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c: one rounding where the road has the instruction, else two."""
        if not HAS_FMA:
            return self.b.fadd(self.b.fmul(a, b), c)
        suffix = f"v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "f32"
        return self.call("llvm.fma." + suffix, a.type, a, b, c)

    def to_float(self, v: Value) -> Value:
        """int32 lanes to float32 lanes."""
        return self.b.sitofp(v, vec(f32, v.type.count))

    def fmax(self, a: Value, b: Value) -> Value:
        """Lane-wise maximum of numbers (no NaN rules: do not feed NaN where it matters)."""
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def half_to_float(self, v: Value) -> Value:
        """<n x i16> bit patterns of IEEE half to <n x float>."""
        n = v.type.count
        if VECTORS != "generic":
            return self.b.fpext(self.b.bitcast(v, vec(f16, n)), vec(f32, n))
        b, t = self.b, vec(i32, n)
        h = b.zext(v, t)
        magnitude = b.shl(b.and_(h, self.splat(0x7FFF, t)), self.splat(13, t))
        # exponent rebias by a multiplication: exact for normal and subnormal halves
        scaled = b.fmul(b.bitcast(magnitude, vec(f32, n)), self.splat(2.0**112, vec(f32, n)))
        special = b.icmp_unsigned(">=", magnitude, self.splat(0x7C00 << 13, t))
        bits = b.select(
            special,
            b.or_(magnitude, self.splat(0x7F800000, t)),
            b.bitcast(scaled, t),
        )
        sign = b.shl(b.and_(h, self.splat(0x8000, t)), self.splat(16, t))
        return b.bitcast(b.or_(bits, sign), vec(f32, n))

    def float_to_half(self, v: Value) -> Value:
        """<n x float> to <n x i16> bit patterns of IEEE half, round to nearest even."""
        n = v.type.count
        if VECTORS != "generic":
            return self.b.bitcast(self.b.fptrunc(v, vec(f16, n)), vec(i16, n))
        b, t = self.b, vec(i32, n)
        bits = b.bitcast(v, t)
        sign = b.and_(b.lshr(bits, self.splat(16, t)), self.splat(0x8000, t))
        magnitude = b.and_(bits, self.splat(0x7FFFFFFF, t))
        # normal range: drop 13 bits with round to even, rebias the exponent by 112
        odd = b.and_(b.lshr(magnitude, self.splat(13, t)), self.splat(1, t))
        rounded = b.lshr(b.add(b.add(magnitude, self.splat(0xFFF, t)), odd), self.splat(13, t))
        normal = b.sub(rounded, self.splat(112 << 10, t))
        # subnormal halves: adding 0.5 makes the float adder round at bit 2**-24
        as_float = b.bitcast(magnitude, vec(f32, n))
        shifted = b.bitcast(b.fadd(as_float, self.splat(0.5, vec(f32, n))), t)
        small = b.sub(shifted, self.splat(0x3F000000, t))
        result = b.select(b.icmp_unsigned("<", magnitude, self.splat(0x38800000, t)), small, normal)
        overflow = b.icmp_unsigned(">=", magnitude, self.splat(0x477FF000, t))
        result = b.select(overflow, self.splat(0x7C00, t), result)
        is_nan = b.icmp_unsigned(">", magnitude, self.splat(0x7F800000, t))
        result = b.select(is_nan, self.splat(0x7E00, t), result)
        return b.trunc(b.or_(result, sign), vec(i16, n))

    def bfloat_to_float(self, v: Value) -> Value:
        """<n x i16> bit patterns of bfloat16 to <n x float>."""
        t = vec(i32, v.type.count)
        wide = self.b.shl(self.b.zext(v, t), self.splat(16, t))
        return self.b.bitcast(wide, vec(f32, v.type.count))

    def tree(self, v: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """Fold the lanes of a vector pairwise, in a fixed order, to one scalar."""
        while v.type.count > 2:
            v = combine(self.half(v, 0), self.half(v, 1))
        first, second = (self.b.extract_element(v, ir.Constant(i32, i)) for i in (0, 1))
        return combine(first, second)

    def trees(self, vectors: Sequence[Value], combine: Callable[[Value, Value], Value]) -> Value:
        """Fold four vectors of 16 lanes, each as `tree` does: result i in lanes 4 i to 4 i + 3.

        A third of the shuffles of four trees, and one latency instead of four.
        """
        vectors, width = list(vectors), 16
        while len(vectors) > 1:
            halves = []
            for half in (0, width // 2):
                lanes = [s + half + i for s in range(0, 16, width) for i in range(width // 2)]
                halves.append(lanes + [16 + lane for lane in lanes])
            width //= 2
            vectors = [
                combine(*(self.shuf(a, b, half) for half in halves))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        (v,) = vectors
        while width > 1:
            width //= 2
            v = combine(v, self.shuf(v, None, [i ^ width for i in range(16)]))
        return v

    def hsum(self, v: Value) -> Value:
        """Sum of all lanes (float or int), in a fixed order."""
        is_float = v.type.element == f32
        return self.tree(v, self.b.fadd if is_float else self.b.add)

    # ---------------------------------------------------------------- dot products
    def dp(self, acc: Value, u: Value, s: Value) -> Value:
        """acc[lane] += sum over 4 bytes of u8 * s8; u <= 127 (i16 pairs saturate on avx2)."""
        b = self.b
        if VECTORS == "avx512":
            u, s = (b.bitcast(x, v64i8) for x in (u, s))
            return self.call("llvm.x86.avx512.vpdpbusd.512", v16i32, acc, u, s)
        if VECTORS == "avx2":
            return b.add(acc, self._halves(self._maddubs, u, s))
        return b.add(acc, self._dp_generic(u, s))

    def dp_wide(self, acc: Value, u: Value, s: Value) -> Value:
        """As `dp` for u up to 255 standing for u - 128.

        avx512 and generic add sum(u * s), so the caller's `acc` starts at -128 * sum(s)
        (`wide_start`); avx2 adds sum((u - 128) * s) at once, by moving the sign to s.
        """
        b = self.b
        if VECTORS != "avx2":
            return self.dp(acc, u, s)
        signed = b.xor(u, self.k(0x80808080))

        def one(w: Value, x: Value) -> Value:
            w8, x8 = (b.bitcast(v, vec(i8, 32)) for v in (w, x))
            zero = ir.Constant(w8.type, [0] * 32)
            negative = b.icmp_signed("<", w8, zero)
            magnitude = b.select(negative, b.sub(zero, w8), w8)
            moved = self.call("llvm.x86.avx2.psign.b", vec(i8, 32), x8, w8)
            return self._maddubs(magnitude, moved)

        return b.add(acc, self._halves(one, signed, s))

    def wide_start(self, minus_128_sum: Value) -> Value:
        """Start value of a `dp_wide` chain."""
        return self.splat(0, v16i32) if VECTORS == "avx2" else minus_128_sum

    def _halves(self, f: Callable[[Value, Value], Value], u: Value, s: Value) -> Value:
        return self.join(*(f(self.half(u, h), self.half(s, h)) for h in (0, 1)))

    def _maddubs(self, u: Value, s: Value) -> Value:
        u8, s8 = (self.b.bitcast(v, vec(i8, 32)) for v in (u, s))
        pairs = self.call("llvm.x86.avx2.pmadd.ub.sw", vec(i16, 16), u8, s8)
        return self._pair_sum(pairs, ir.Constant(vec(i16, 16), [1] * 16))

    def _pair_sum(self, a: Value, b: Value) -> Value:
        """Products of i16 lanes, neighbours added, as i32 (LLVM makes pmaddwd of it)."""
        n = a.type.count
        wide = vec(i32, n)
        product = self.b.mul(self.b.sext(a, wide), self.b.sext(b, wide))
        even = self.shuf(product, None, range(0, n, 2))
        odd = self.shuf(product, None, range(1, n, 2))
        return self.b.add(even, odd)

    def _dp_generic(self, u: Value, s: Value) -> Value:
        b = self.b
        u, s = (b.bitcast(x, v32i16) for x in (u, s))
        eight = self.splat(8, v32i16)
        u_even, u_odd = b.and_(u, self.splat(255, v32i16)), b.lshr(u, eight)
        s_even, s_odd = b.ashr(b.shl(s, eight), eight), b.ashr(s, eight)
        return b.add(self._pair_sum(u_even, s_even), self._pair_sum(u_odd, s_odd))

    def dp_pairs(self, acc: Value, a: Value, c: Value) -> Value:
        """acc[lane] += sum over 2 of s16 * s16."""
        a, c = (self.b.bitcast(x, v32i16) for x in (a, c))
        if VECTORS == "avx512":
            return self.call("llvm.x86.avx512.vpdpwssd.512", v16i32, acc, a, c)
        return self.b.add(acc, self._pair_sum(a, c))

    def dp_pairs_of(self, a: Value, c: Value, acc: Value) -> Value:
        """As `dp_pairs`, in the order of `fma`."""
        return self.dp_pairs(acc, a, c)

    def lookup16(self, index: Value, table: Sequence[int]) -> Value:
        """Replace every byte (0..15) of 16 dwords by ``table[byte]``."""
        b = self.b
        if VECTORS == "avx512":
            t = ir.Constant(v64i8, [ir.Constant(i8, x) for x in table] * 4)
            args = (t, b.bitcast(index, v64i8))
            return b.bitcast(self.call("llvm.x86.avx512.pshuf.b.512", v64i8, *args), v16i32)
        if VECTORS == "avx2":
            t = ir.Constant(vec(i8, 32), [ir.Constant(i8, x) for x in table] * 2)

            def one(v: Value, _: Value) -> Value:
                v = b.bitcast(v, vec(i8, 32))
                found = self.call("llvm.x86.avx2.pshuf.b", vec(i8, 32), t, v)
                return b.bitcast(found, vec(i32, 8))

            return self._halves(one, index, index)
        # a binary tree of selects over the four bits of the index
        idx = b.bitcast(index, v64i8)
        level = [ir.Constant(v64i8, [ir.Constant(i8, x)] * 64) for x in table]
        for bit in range(4):
            mask = b.and_(idx, self.splat(1 << bit, v64i8))
            on = b.icmp_unsigned("!=", mask, self.splat(0, v64i8))
            level = [b.select(on, level[i + 1], level[i]) for i in range(0, len(level), 2)]
        return b.bitcast(level[0], v16i32)

    # ---------------------------------------------------------------- control flow
    def loop(
        self,
        count: Any,
        state: Sequence[Value],
        body: Callable[[Any, list[Value]], list[Value]],
        unroll: bool = False,
    ) -> list[Value]:
        """``for i in range(count): state = body(i, state)``; state lives in registers.

        With `unroll`, `count` and `i` are Python ints and no branch is emitted.
        """
        if unroll:
            values = list(state)
            for i in range(count):
                values = body(i, values)
            return values
        b = self.b
        before, function = b.block, b.function
        head, inside, out = (function.append_basic_block(n) for n in ("head", "body", "out"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(i64)
        i.add_incoming(self.c(0), before)
        phis = []
        for value in state:
            phi = b.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        limit = self.c(count) if isinstance(count, int) else count
        b.cbranch(b.icmp_signed("<", i, limit), inside, out)
        b.position_at_end(inside)
        new = body(i, list(phis))
        following, end = b.add(i, self.c(1)), b.block
        i.add_incoming(following, end)
        for phi, value in zip(phis, new, strict=True):
            phi.add_incoming(value, end)
        b.branch(head)
        b.position_at_end(out)
        return phis

    def switch(self, value: Value, cases: Mapping[int, Callable[[], None]]) -> None:
        """Run the case of an int64 value; nothing where there is none."""
        b = self.b
        function = b.function
        out = function.append_basic_block("done")
        switch = b.switch(value, out)
        for number, case in cases.items():
            block = function.append_basic_block(f"case{number}")
            switch.add_case(self.c(number), block)
            b.position_at_end(block)
            case()
            b.branch(out)
        b.position_at_end(out)


def kernel(ret: Any, *args: Any) -> Callable[[Callable[..., Value | None]], Any]:
    """Make a Numba intrinsic of a generator; a decorator.

    ``generate(emitter, *args)`` emits the IR and returns the SSA result, or None for void. `ret`
    and `args` are Numba types (``kernels.memory``).
    """

    def made(generate: Callable[..., Value | None]) -> Any:
        def typer(_context: Any, *_types: Any) -> Any:
            def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
                result = generate(Emitter(builder), *values)
                return context.get_dummy_value() if result is None else result

            return ret(*args), codegen

        # numba inspects the signature, so the wrapper needs exactly as many named parameters
        names = ", ".join(f"a{i}" for i in range(len(args)))
        head = f"context, {names}" if names else "context"
        scope: dict[str, Any] = {"typer": typer}
        exec(f"def emitted({head}):\n    return typer({head})\n", scope)
        return intrinsic(scope["emitted"])

    return made
