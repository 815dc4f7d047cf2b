"""An engine stepped by hand: no thread, no clock."""

from fastllm.engine import Engine
from fastllm.errors import FastLLMError
from fastllm.request import SamplingParams
from fastllm.sequence import Sequence


class Listed:
    """A sink that keeps everything, and is full when a test says so."""

    def __init__(self):
        self.events, self.full = [], False

    def put(self, event):
        self.events.append(event)


def stopped_clock():
    """Time that stands still, so that no budget depends on this machine."""
    return 1.0


def engine_of(runner):
    return Engine(runner, clock=stopped_clock)


def sequence(prompt, params=None, **more):
    return Sequence(prompt, params or SamplingParams(), Listed(), **more)


def add(engine, seq):
    engine.check(seq)
    engine.add(seq)


def finish(engine, seq):
    """Tokens, finish reason and timings of a queued sequence."""
    while not seq.ended:
        assert engine.step(), "nothing to compute, and the sequence has not ended"
    last = seq.sink.events[-1]
    if isinstance(last, FastLLMError):
        raise last
    return [t for c in seq.sink.events for t in c.token_ids], last.finish_reason, last.timings


def run(engine, prompt, **params):
    seq = sequence(prompt, SamplingParams(**{"max_tokens": 6, "seed": 3, **params}))
    add(engine, seq)
    return finish(engine, seq)


def assert_blocks_conserved(scheduler):
    """Who waits holds nothing, and every block is held once or free."""
    assert not any(job.block_table for job in scheduler.waiting)
    held = [block for job in scheduler.running for block in job.block_table]
    assert len(set(held)) == len(held)
    free = scheduler.pool.num_free + scheduler.session.num_blocks
    assert len(held) + free == scheduler.pool.num_blocks


def assert_all_blocks_back(engine):
    engine.forget()
    scheduler = engine.scheduler
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert not scheduler.running
    assert not scheduler.waiting
