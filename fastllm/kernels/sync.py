"""Threads meet here: atomics, waiting for a word to change, and a barrier, without the GIL.

The sync area of a barrier is int32 words, one cache line (64 bytes) each::

    0 count   64 generation   128 sleepers   192 spin budget now (0: not set yet)

Waiting is spin, then sleep in the kernel (futex). A barrier between running threads costs about
0.1 us; the budget adapts, so that a partner without a CPU is waited for asleep.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from llvmlite import ir

from fastllm.kernels.emit import Emitter, Value, i32, i64, kernel
from fastllm.kernels.jit import compiled
from fastllm.kernels.memory import I, N

GENERATION, SLEEPERS, BUDGET = 64, 128, 192
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_FUTEX_CALL = {"x86_64": 202, "amd64": 202, "aarch64": 98, "riscv64": 98}
_YIELD_CALL = {"x86_64": 24, "amd64": 24, "aarch64": 124, "riscv64": 124}
# A wait longer than a few microseconds may mean that the partner has no CPU because another engine
# runs there: then spinning keeps that engine from ending. Offering the CPU now and then costs less
# than a microsecond where nobody wants it; sleeping costs up to 50 in a virtual machine.
PATIENCE, YIELD_EVERY = 256, 32
_MACHINE = platform.machine().lower()
_LINUX = sys.platform == "linux" and _MACHINE in _FUTEX_CALL
_SLEEP_US = 50  # without futex: how often a sleeper looks


def _word(e: Emitter, address: Value) -> Value:
    return e.b.inttoptr(address, i32.as_pointer())


@kernel(I, I)
def atomic_load(e: Emitter, a: Value) -> Value:
    """An int32; what was stored before the store that it sees is seen, too."""
    return e.b.sext(e.b.load_atomic(_word(e, a), "acquire", 4), i64)


@kernel(N, I, I)
def atomic_store(e: Emitter, a: Value, v: Value) -> None:
    """Store an int32, in one order for all threads."""
    e.b.store_atomic(e.b.trunc(v, i32), _word(e, a), "seq_cst", 4)


@kernel(I, I, I)
def atomic_add(e: Emitter, a: Value, v: Value) -> Value:
    """Add to an int32; return what it was."""
    return e.b.sext(e.b.atomic_rmw("add", _word(e, a), e.b.trunc(v, i32), "seq_cst"), i64)


@kernel(I, I)
def atomic_load_i64(e: Emitter, a: Value) -> Value:
    """As `atomic_load`, of an int64."""
    return e.b.load_atomic(e.b.inttoptr(a, i64.as_pointer()), "acquire", 8)


@kernel(N, I, I)
def atomic_store_i64(e: Emitter, a: Value, v: Value) -> None:
    """As `atomic_store`, of an int64."""
    e.b.store_atomic(v, e.b.inttoptr(a, i64.as_pointer()), "seq_cst", 8)


@kernel(N)
def _pause(e: Emitter) -> None:
    if _MACHINE in ("x86_64", "amd64"):
        e.call("llvm.x86.sse2.pause", ir.VoidType())
    elif _MACHINE in ("aarch64", "arm64"):
        e.call("llvm.aarch64.hint", ir.VoidType(), ir.Constant(i32, 1))


def _syscall(e: Emitter, *args: Any) -> Value:
    """libc's syscall(), by name: the object file stays relocatable."""
    module = e.b.module
    function = module.globals.get("syscall")
    if function is None:
        function = ir.Function(module, ir.FunctionType(i64, [i64], var_arg=True), "syscall")
    return e.b.call(function, [e.c(a) if isinstance(a, int) else a for a in args])


@kernel(N, I, I)
def _sleep(e: Emitter, a: Value, old: Value) -> None:
    if _LINUX:
        _syscall(e, _FUTEX_CALL[_MACHINE], a, _WAIT_PRIVATE, old, 0, 0, 0)
    else:
        e.b.call(e.fn("usleep", i32, [i32]), [e.c(_SLEEP_US, i32)])


@kernel(N)
def _give_way(e: Emitter) -> None:
    if _LINUX:
        _syscall(e, _YIELD_CALL[_MACHINE])


@kernel(N, I)
def _wake(e: Emitter, a: Value) -> None:
    if _LINUX:
        _syscall(e, _FUTEX_CALL[_MACHINE], a, _WAKE_PRIVATE, 1 << 30, 0, 0, 0)


@compiled
def wait_change(word: int, old: int, sleepers: int, spin: int) -> int:
    """Return once *word != old: `spin` polls, then asleep. 1 if it had to sleep."""
    polls = 0
    slept = 0
    while atomic_load(word) == old:
        if polls < spin:
            _pause()
            polls += 1
            if polls >= PATIENCE and polls % YIELD_EVERY == 0:
                _give_way()
        else:
            # counted before the kernel looks at the word again: no wake-up is lost
            atomic_add(sleepers, 1)
            _sleep(word, old)
            atomic_add(sleepers, -1)
            slept = 1
    return slept


@compiled
def wake_all(word: int, sleepers: int) -> None:
    """Wake those who sleep on a word that has just been changed."""
    if atomic_add(sleepers, 0) > 0:  # a read-modify-write orders the change before this look
        _wake(word)


@compiled
def publish(word: int, value: int, sleepers: int) -> None:
    """Store a word and wake those who sleep on it."""
    atomic_store(word, value)
    wake_all(word, sleepers)


@compiled
def barrier(area: int, threads: int, spin: int) -> None:
    """Return when all threads have come."""
    if threads > 1:
        generation = atomic_load(area + GENERATION)
        if atomic_add(area, 1) + 1 == threads:
            atomic_store(area, 0)
            publish(area + GENERATION, (generation + 1) & 0x3FFFFFFF, area + SLEEPERS)
        else:
            # a wait that outlived its budget means a partner has no CPU: ask the kernel sooner
            # next time; waits that end while spinning win the budget back, up to `spin`
            budget = atomic_load(area + BUDGET)
            if budget <= 0 or budget > spin:
                budget = spin
            slept = wait_change(area + GENERATION, generation, area + SLEEPERS, budget)
            if slept != 0:
                budget = budget // 4 if budget > 800 else 200
            else:
                budget += budget // 16 + 1
            atomic_store(area + BUDGET, min(budget, spin))
