"""The engine over a fake model: same tokens whatever shares the batch, blocks, cancellation."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.engine import Engine
from fastllm.errors import ContextLengthError, KernelError, RequestError
from fastllm.request import SamplingParams
from fastllm.sequence import Sequence
from tests.fakes import EOS, FakeRunner, logits_after, scripted


def finish(engine, seq):
    """Tokens and finish reason of a submitted sequence."""
    tokens = []
    while True:
        chunk = engine.wait(seq)
        tokens += chunk.token_ids
        if chunk.finish_reason is not None:
            return tokens, chunk.finish_reason, chunk.timings


def run(engine, prompt, **params):
    seq = Sequence(prompt, SamplingParams(**{"max_tokens": 6, "seed": 3, **params}))
    engine.submit(seq)
    return finish(engine, seq)


def assert_blocks_conserved(engine):
    """Who waits holds nothing, and every block is held once or free."""
    assert not any(seq.block_table for seq in engine.waiting)
    held = [block for seq in engine.running for block in seq.block_table]
    assert len(set(held)) == len(held)
    assert len(held) + engine._session.num_blocks + engine.pool.num_free == engine.pool.num_blocks


def assert_all_blocks_back(engine):
    engine.forget()
    assert engine.pool.num_free == engine.pool.num_blocks
    assert not engine.running
    assert not engine.waiting


CONTEXT = 60
# Beginnings of one text, so that many find theirs in the cache, and a tail of their own.
PROMPTS = st.lists(
    st.builds(
        lambda length, tail: [*range(length), *tail],
        st.integers(0, 36),
        st.lists(st.integers(0, 255), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=150, deadline=None)
@given(
    PROMPTS,
    st.integers(1, 40),
    st.sampled_from([2, 3, 16]),
    st.integers(0, 8),
    st.sets(st.integers(0, 6)),
    st.sampled_from([0, 20]),
)
def test_same_tokens_alone_in_a_batch_and_in_any_chunks(
    prompts, chunk, block_size, spare, scored, short_context
):
    # Blocks for the longest alone and a few more: mostly too few for all, so some are preempted.
    num_blocks = -(-CONTEXT // block_size) + spare
    runner = FakeRunner(
        CONTEXT, num_blocks=num_blocks, block_size=block_size, max_batch_tokens=chunk,
        short_context=short_context,
    )  # fmt: skip
    engine = Engine(runner)
    engine._max_rows = 7

    def check(batch):
        assert len(batch.logit_rows) <= 7
        assert_blocks_conserved(engine)

    runner.before_forward = check
    rows = [[] for _ in prompts]
    seqs = [
        Sequence(
            prompt,
            SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=1 + 3 * i),
            on_rows=collector(rows[i]) if i in scored else None,
        )
        for i, prompt in enumerate(prompts)
    ]
    for seq in seqs:
        engine.submit(seq)
    for seq, prompt, seen in zip(seqs, prompts, rows, strict=True):
        tokens, reason, _ = finish(engine, seq)
        alone = Engine(FakeRunner(CONTEXT))
        one = Sequence(prompt, seq.params)
        alone.submit(one)
        assert finish(alone, one)[:2] == (tokens, reason)
        if seq.on_rows is not None:
            everything = [*prompt, *tokens][: len(seen)]
            assert len(seen) == len(prompt) + len(tokens) - 1
            for i, row in enumerate(seen):
                assert (row == logits_after(everything[: i + 1])).all()
    assert_all_blocks_back(engine)


def collector(seen):
    """An on_rows that checks the order."""

    def on_rows(start, rows):
        assert start == len(seen)
        seen.extend(rows.copy())

    return on_rows


@pytest.mark.parametrize(
    ("prompt_length", "max_tokens", "regimes"),
    [(10, 10, {0}), (10, None, {0, 1}), (20, 1, {0}), (20, 2, {0, 1}), (21, 1, {1}), (5, 0, {0})],
)
def test_longrope_takes_the_factors_of_the_length_that_a_sequence_has(
    prompt_length, max_tokens, regimes
):
    """Short ones while prompt and answer fit; beyond, all of it is computed with the long ones."""
    runner, seen = FakeRunner(40, short_context=20), set()
    runner.before_forward = lambda batch: seen.update(batch.rope_regimes.tolist())
    tokens, reason, _ = run(Engine(runner), range(prompt_length), max_tokens=max_tokens)
    assert seen == regimes
    assert reason == "length"
    assert len(tokens) == (40 - prompt_length if max_tokens is None else max_tokens)


def test_kept_blocks_are_those_of_the_same_rope_regime():
    runner = FakeRunner(64, short_context=20)
    engine = Engine(runner)
    run(engine, range(12), max_tokens=2)
    assert run(engine, range(14), max_tokens=2)[2].cached_tokens == 12
    assert run(engine, range(25), max_tokens=2)[2].cached_tokens == 0  # short ones are no use
    assert run(engine, range(26), max_tokens=2)[2].cached_tokens == 25
    assert run(engine, range(12), max_tokens=2)[2].cached_tokens == 0  # nor are long ones
    assert_all_blocks_back(engine)


def test_prompt_in_chunks_and_decoding_together():
    runner = FakeRunner(max_batch_tokens=32)
    engine = Engine(runner)
    short, long = (
        Sequence([1], SamplingParams(max_tokens=5)),
        Sequence(range(80), SamplingParams(max_tokens=2)),
    )
    engine.submit(short)
    engine.submit(long)
    finish(engine, short)
    finish(engine, long)
    # The short one decodes while the long prompt comes in; nobody waits for the other's prompt.
    assert runner.steps == [[1, 31], [1, 31], [1, 18], [1, 1], [1]]


def test_a_conversation_that_goes_on_computes_the_new_turn_only():
    runner = FakeRunner()
    engine = Engine(runner)
    prompt = list(range(100))
    answer, _, first = run(engine, prompt)
    assert first.cached_tokens == 0
    before = runner.num_tokens
    longer = [*prompt, *answer, 7, 8, 9]
    warm, _, second = run(engine, longer)
    # The last token of the answer was sampled and never computed.
    assert second.cached_tokens == len(prompt) + len(answer) - 1
    assert runner.num_tokens - before == 4 + 5
    cold, _, _ = run(Engine(FakeRunner()), longer)
    assert warm == cold
    # A prompt that differs in the middle keeps what comes before.
    changed = [*prompt[:70], 200, *prompt[71:]]
    warm, _, third = run(engine, changed)
    assert third.cached_tokens == 70
    assert warm == run(Engine(FakeRunner()), changed)[0]
    # The same prompt again: its last token is computed, for the logits.
    assert run(engine, changed)[2].cached_tokens == 99
    assert_all_blocks_back(engine)


def test_end_token_and_ignore_eos():
    runner = FakeRunner(model=scripted(b"ab", 3))
    engine = Engine(runner)
    seq = Sequence([1, 2, 3], SamplingParams(), eos_token_ids=[EOS])
    engine.submit(seq)
    assert finish(engine, seq)[:2] == ([97, 98], "stop")
    seq = Sequence([1, 2, 3], SamplingParams(ignore_eos=True, max_tokens=4), eos_token_ids=[EOS])
    engine.submit(seq)
    assert finish(engine, seq)[:2] == ([97, 98, EOS, EOS], "length")


def test_without_max_tokens_the_context_ends_the_answer():
    tokens, reason, timings = run(Engine(FakeRunner(n_ctx=20)), [1, 2, 3], max_tokens=None)
    assert (len(tokens), reason) == (17, "length")
    assert timings.completion_tokens == 17


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "numbers"),
    [
        (range(21), None, ("21 tokens", "holds 20")),
        (range(20), None, ("20 tokens", "holds 20")),
        (range(15), 6, ("need 21", "holds 20")),
    ],
)
def test_a_context_too_long_names_both_numbers(prompt, max_tokens, numbers):
    runner = FakeRunner(n_ctx=20)
    with pytest.raises(ContextLengthError) as caught:
        run(Engine(runner), prompt, max_tokens=max_tokens)
    assert all(number in str(caught.value) for number in numbers)
    assert runner.num_tokens == 0


def test_requests_that_cannot_be_served():
    engine = Engine(FakeRunner())
    with pytest.raises(RequestError, match="empty"):
        run(engine, [])
    with pytest.raises(RequestError, match=r"token id 264 .* 0 to 263"):
        run(engine, [1, 264])
    with pytest.raises(RequestError, match="token id -1"):
        run(engine, [-1])


def test_rows_come_in_order_once_each_and_in_bounded_steps():
    runner = FakeRunner(max_batch_tokens=32)
    engine = Engine(runner)
    engine._max_rows = 10
    seen = []
    seq = Sequence(
        range(45),
        SamplingParams(max_tokens=0),
        on_rows=lambda start, rows: seen.append((start, rows.copy())),
    )
    engine.submit(seq)
    assert finish(engine, seq)[:2] == ([], "length")
    assert [(start, len(rows)) for start, rows in seen] == [
        (0, 10), (10, 10), (20, 10), (30, 10), (40, 5)
    ]  # fmt: skip
    assert (seen[3][1][2] == logits_after(range(33))).all()
    assert_all_blocks_back(engine)


def test_cancelled_sequences_leave_and_the_others_stay():
    engine = Engine(FakeRunner())
    stopped, other = (Sequence([i], SamplingParams(max_tokens=50)) for i in (1, 2))
    engine.submit(stopped)
    engine.submit(other)
    engine.wait(stopped)
    engine.cancel(stopped)
    _, reason, timings = finish(engine, stopped)
    assert reason == "cancelled"
    assert timings.completion_tokens == 1
    assert finish(engine, other)[1] == "length"
    waiting = Sequence([3], SamplingParams())
    engine.submit(waiting)
    engine.cancel(waiting)
    assert finish(engine, waiting)[:2] == ([], "cancelled")
    assert_all_blocks_back(engine)


def test_an_error_of_one_sequence_spares_the_others():
    def model(history):
        logits = logits_after(history)
        if history[0] == 66:
            logits[5] = float("nan")
        return logits

    engine = Engine(FakeRunner(model=model))
    bad, good = (Sequence([i], SamplingParams(max_tokens=3)) for i in (66, 1))
    engine.submit(bad)
    engine.submit(good)
    with pytest.raises(ValueError, match="NaN"):
        finish(engine, bad)
    assert finish(engine, good)[1] == "length"
    assert_all_blocks_back(engine)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom"), KernelError("gone")])
def test_a_broken_step_ends_everybody_and_the_engine_goes_on(error):
    runner = FakeRunner()
    engine = Engine(runner)

    def fail(batch):
        raise error

    expected, _, _ = run(engine, [1, 2])
    runner.before_forward = fail
    one, two = (Sequence([i], SamplingParams(max_tokens=3)) for i in (1, 2))
    engine.submit(one)
    engine.submit(two)
    with pytest.raises(type(error)):
        finish(engine, one)
    with pytest.raises(KernelError):
        finish(engine, two)
    runner.before_forward = lambda batch: None
    assert run(engine, [1, 2])[0] == expected
    assert_all_blocks_back(engine)


def test_threads_share_the_steps():
    runner = FakeRunner(n_ctx=400, num_blocks=40)
    engine = Engine(runner)
    meet = threading.Barrier(4)
    expected = [run(Engine(FakeRunner()), [i], max_tokens=60)[0] for i in range(4)]
    found = [None] * 4

    def ask(i):
        seq = Sequence([i], SamplingParams(max_tokens=60, seed=3))
        engine.submit(seq)
        meet.wait()
        found[i] = finish(engine, seq)[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == expected
    # All were queued before the first step, so each step carried all four.
    assert len(runner.steps) == 60
    assert_all_blocks_back(engine)


def test_a_closed_engine_says_so():
    runner = FakeRunner()
    engine = Engine(runner)
    seq = Sequence([1], SamplingParams(max_tokens=9))
    engine.submit(seq)
    engine.wait(seq)
    engine.close()
    engine.close()
    assert runner.closed
    with pytest.raises(RequestError, match="closed"):
        engine.wait(seq)
    with pytest.raises(RequestError, match="closed"):
        run(engine, [1])
