"""A crew: threads that wait for steps, and the rule who may have some of them now.

The steps of a process share one crew. They run side by side while their threads fit its CPUs; else
they take turns, first come, first served: who is at the head of the line waits until enough CPUs
are free, hires workers, and lets the next one look. All of that is compiled code without the GIL,
so no exception from a signal handler can come between taking and giving back.

Each worker sleeps at a gate of its own: a step wakes those it needs and no others. The caller of a
step is its thread 0 and returns when its workers have left: afterwards nobody is in its memory.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from fastllm.kernels.jit import COMPILING, compiled

if COMPILING:
    from fastllm.kernels.memory import load_i64, store_i64
    from fastllm.kernels.sync import (
        atomic_add,
        atomic_load,
        atomic_load_i64,
        atomic_store,
        atomic_store_i64,
        publish,
        wait_change,
        wake_all,
    )


class Crew(IntEnum):
    """Byte offsets in the block of a crew; what threads wait on has a cache line of its own."""

    TICKETS = 0  # int32: how many have asked so far
    TURN = 64  # int32: whose turn it is; behind it, as below, how many are asleep there
    FREE = 128  # int32: CPUs that no step has
    CPUS = 192  # int64: all of them
    WORKERS = 200  # int64
    SPIN = 208  # int64: polls of an idle worker before it sleeps
    ENDED = 216  # int32: nobody may hire any more
    GATES = 256  # one for each worker


class Gate(IntEnum):
    """Byte offsets in the gate of a worker."""

    JOB = 0  # int32: odd while the worker has a job
    CONTEXT = 8  # int64: address of the context block of its step
    TID = 16  # int64: which of the step's threads it is
    BYTES = 64


_ASLEEP = 4  # behind a word: how many sleep on it


def crew_bytes(num_workers: int) -> int:
    """Size of the block of a crew; it begins on a cache line, as zeros."""
    return Crew.GATES + Gate.BYTES * num_workers


@compiled
def gate_of(crew: int, worker: int) -> int:
    """Address of the gate of worker 0, 1, ..."""
    return crew + Crew.GATES + Gate.BYTES * worker


@compiled
def _take_turn(crew: int, cpus: int) -> Any:
    """Wait in line, then for so many free CPUs; returns the number to pass on."""
    # Asleep at once: whoever has the CPUs now needs them.
    ticket = atomic_add(crew + Crew.TICKETS, 1)
    turn = atomic_load(crew + Crew.TURN)
    while turn != ticket:
        wait_change(crew + Crew.TURN, turn, crew + Crew.TURN + _ASLEEP, 0)
        turn = atomic_load(crew + Crew.TURN)
    free = atomic_load(crew + Crew.FREE)
    while free < cpus:
        wait_change(crew + Crew.FREE, free, crew + Crew.FREE + _ASLEEP, 0)
        free = atomic_load(crew + Crew.FREE)
    return ticket


@compiled
def _pass_turn(crew: int, ticket: int) -> None:
    publish(crew + Crew.TURN, ticket + 1, crew + Crew.TURN + _ASLEEP)


@compiled
def _share(crew: int, threads: int) -> Any:
    """CPUs of a step; one with more threads than there are takes them all."""
    return min(threads, load_i64(crew + Crew.CPUS))


@compiled
def begin(crew: int, c: int, threads: int) -> int:
    """Wait until a step may run, and hire its workers; 0 if the crew has ended."""
    ticket = _take_turn(crew, _share(crew, threads))
    if atomic_load(crew + Crew.ENDED) != 0:
        _pass_turn(crew, ticket)
        return 0
    atomic_add(crew + Crew.FREE, -_share(crew, threads))
    tid = 1
    gate = gate_of(crew, 0)
    while tid < threads:  # there are enough: see `fastllm.step.crew`
        job = atomic_load(gate)
        if job & 1 == 0:
            store_i64(gate + Gate.TID, tid)
            atomic_store_i64(gate + Gate.CONTEXT, c)
            publish(gate, job + 1, gate + _ASLEEP)
            tid += 1
        gate += Gate.BYTES
    _pass_turn(crew, ticket)
    return 1


@compiled
def finish(crew: int, c: int, threads: int, spin: int) -> None:
    """Wait until the workers of a step have left it, and give back its CPUs."""
    for worker in range(load_i64(crew + Crew.WORKERS) if threads > 1 else 0):
        gate = gate_of(crew, worker)
        job = atomic_load(gate)  # before the context: what is odd then belongs to what is read
        if job & 1 != 0 and atomic_load_i64(gate + Gate.CONTEXT) == c:
            wait_change(gate, job, gate + _ASLEEP, spin)
    atomic_add(crew + Crew.FREE, _share(crew, threads))
    wake_all(crew + Crew.FREE, crew + Crew.FREE + _ASLEEP)


@compiled
def wait_for_job(crew: int, gate: int) -> Any:
    """Be idle; returns the context block of a step, or 0 when the crew has ended."""
    job = atomic_load(gate)
    if job & 1 == 0:
        wait_change(gate, job, gate + _ASLEEP, load_i64(crew + Crew.SPIN))
    if atomic_load(crew + Crew.ENDED) != 0:
        return 0
    return load_i64(gate + Gate.CONTEXT)


@compiled
def job_done(gate: int) -> None:
    """Be free again."""
    publish(gate, atomic_load(gate) + 1, gate + _ASLEEP)


@compiled
def end(crew: int) -> None:
    """Let the workers return, once every step is over; may be called twice."""
    ticket = _take_turn(crew, load_i64(crew + Crew.CPUS))
    if atomic_load(crew + Crew.ENDED) == 0:
        atomic_store(crew + Crew.ENDED, 1)
        for worker in range(load_i64(crew + Crew.WORKERS)):
            gate = gate_of(crew, worker)
            publish(gate, atomic_load(gate) + 1, gate + _ASLEEP)
    _pass_turn(crew, ticket)
