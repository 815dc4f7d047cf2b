"""The ledger: every large piece of memory by name, planned before the first one is allocated.

``step.plan`` writes it from a model's headers; the runner allocates what it says, `info` and errors
print the same figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastllm.errors import BudgetError


@dataclass(frozen=True)
class Ledger:
    """What one model takes with one context.

    Attributes
    ----------
    n_ctx : int
        Tokens of the context.
    weights : int
        Bytes of packed matrices and vectors.
    kv_cache : int
        Bytes of keys and values of the whole context.
    buffers : int
        Bytes of activations, scratch, partial results, logits and rope tables.
    reading : int
        Bytes of the ring that the file is read through.
    process : int
        Bytes of interpreter, libraries, vocabulary and what else Python holds.
    """

    n_ctx: int
    weights: int
    kv_cache: int
    buffers: int
    reading: int
    process: int

    @property
    def total(self) -> int:
        """Sum of all parts, bytes."""
        return self.weights + self.kv_cache + self.buffers + self.reading + self.process

    def __str__(self) -> str:
        parts = (
            (self.weights, "weights"),
            (self.kv_cache, f"KV cache of {self.n_ctx} tokens"),
            (self.buffers + self.reading, "buffers"),
            (self.process, "process"),
        )
        return " + ".join(f"{megabytes(nbytes)} {name}" for nbytes, name in parts)


def megabytes(nbytes: int) -> str:
    """Return a number of bytes for a person; rounded up, so that so much is enough."""
    return f"{-(-nbytes // 1_000_000)} MB"


def largest_context(ledger: Callable[[int], Ledger], longest: int, free: int) -> int:
    """Return the longest context whose ledger fits.

    Parameters
    ----------
    ledger : callable
        Context to its ledger; a longer context never takes less.
    longest : int
        Not beyond this.
    free : int
        Bytes there are.

    Returns
    -------
    int
        0 to `longest`.
    """
    low, high = 0, longest
    while low < high:
        middle = (low + high + 1) // 2
        if ledger(middle).total <= free:
            low = middle
        else:
            high = middle - 1
    return low


def settle_context(
    ledger: Callable[[int], Ledger],
    *,
    asked: int | None,
    default: int,
    longest: int,
    shortest: int,
    free: int,
) -> int:
    """Return the context that a model is given.

    Parameters
    ----------
    ledger : callable
        Context to its ledger.
    asked : int or None
        What the caller wants, or None for as much of `default` as fits.
    default, longest : int
        What is given where nothing is asked, and what the model allows.
    shortest : int
        A default shorter than this is not given; it is refused.
    free : int
        Bytes that the process can have in all, those of the ledger's `process` that it has already
        among them.

    Raises
    ------
    BudgetError
        It does not fit; the text has the sum, and the longest context that does fit or the least
        memory that would do.
    """
    wanted = default if asked is None else asked
    if ledger(wanted).total <= free:
        return wanted
    fitting = largest_context(ledger, longest, free)
    if asked is None and fitting >= min(shortest, wanted):
        # whole blocks: a part of one takes as much
        return min(wanted, max(fitting // shortest * shortest, shortest))
    sum_ = ledger(wanted)
    least = ledger(min(shortest, longest)).total
    advice = (
        f"the longest context that fits has {fitting} tokens (-c {fitting})"
        if fitting
        else f"no context fits; the least that would do is {megabytes(least)}"
    )
    raise BudgetError(
        f"the model needs {megabytes(sum_.total)} ({sum_}) and {free // 1_000_000} MB are there: "
        f"{advice}"
    )
