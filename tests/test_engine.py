"""The engine over a fake model: same tokens whatever shares the batch, blocks, cancellation."""

from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import ContextLengthError, KernelError, KVRangeError, RequestError
from fastllm.request import SamplingParams
from fastllm.scheduling import job as job_module
from tests.by_hand import (
    add,
    assert_all_blocks_back,
    assert_blocks_conserved,
    engine_of,
    finish,
    run,
    sequence,
)
from tests.fakes import EOS, FakeRunner, logits_after, scripted

CONTEXT = 60


@pytest.fixture(autouse=True, scope="module")
def few_are_short():
    """Prompts of a few tokens go in passes, so that small examples have both kinds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "SHORT_TOKENS", 6)
        yield


def leave_passes(engine, parts):
    """Run so many parts of passes at a time."""
    turns = cycle(parts)
    engine._pace.parts = lambda num_decodes, num_tokens: next(turns)


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
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.sets(st.integers(0, 6), max_size=2),
)
def test_same_tokens_alone_in_a_batch_and_in_any_chunks(
    prompts, chunk, block_size, spare, scored, short_context, parts, leaving
):
    # Blocks for the longest alone and a few more: mostly too few for all, so some are preempted.
    num_blocks = -(-CONTEXT // block_size) + spare
    runner = FakeRunner(
        CONTEXT, num_blocks=num_blocks, block_size=block_size, max_batch_tokens=chunk,
        short_context=short_context,
    )  # fmt: skip
    engine = engine_of(runner)
    engine.scheduler.max_rows = 7
    leave_passes(engine, parts)

    def check(batch):
        assert len(batch.logit_rows) <= 7
        assert_blocks_conserved(engine.scheduler)

    runner.before_forward = check
    rows = [[] for _ in prompts]
    seqs = [
        sequence(
            prompt,
            SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=1 + 3 * i),
            on_rows=collector(rows[i]) if i in scored else None,
        )
        for i, prompt in enumerate(prompts)
    ]
    for seq in seqs:
        add(engine, seq)
    engine.step()
    for i in leaving:
        if i < len(seqs):
            seqs[i].cancelled = True
    for i, (seq, prompt, seen) in enumerate(zip(seqs, prompts, rows, strict=True)):
        if i in leaving:
            continue
        tokens, reason, _ = finish(engine, seq)
        alone = engine_of(FakeRunner(CONTEXT))
        one = sequence(prompt, seq.params)
        add(alone, one)
        assert finish(alone, one)[:2] == (tokens, reason)
        if seq.on_rows is not None:
            everything = [*prompt, *tokens][: len(seen)]
            assert len(seen) == len(prompt) + len(tokens) - 1
            for n, row in enumerate(seen):
                assert (row == logits_after(everything[: n + 1])).all()
    engine.step()  # who was cancelled leaves
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
    runner.before_forward = lambda batch: seen.update(
        [0] if batch.rope_regimes is None else batch.rope_regimes.tolist()
    )
    tokens, reason, _ = run(engine_of(runner), range(prompt_length), max_tokens=max_tokens)
    assert seen == regimes
    assert reason == "length"
    assert len(tokens) == (40 - prompt_length if max_tokens is None else max_tokens)


def test_kept_blocks_are_those_of_the_same_rope_regime():
    runner = FakeRunner(64, short_context=20)
    engine = engine_of(runner)
    run(engine, range(12), max_tokens=2)
    assert run(engine, range(14), max_tokens=2)[2].cached_tokens == 12
    assert run(engine, range(25), max_tokens=2)[2].cached_tokens == 0  # short ones are no use
    assert run(engine, range(26), max_tokens=2)[2].cached_tokens == 25
    assert run(engine, range(12), max_tokens=2)[2].cached_tokens == 0  # nor are long ones
    assert_all_blocks_back(engine)


def test_answers_go_on_between_the_parts_of_a_pass():
    runner = FakeRunner(max_batch_tokens=32, num_parts=3)
    engine = engine_of(runner)
    leave_passes(engine, [1])
    short, long = (
        sequence([1], SamplingParams(max_tokens=7)),
        sequence(range(40), SamplingParams(max_tokens=2)),
    )
    add(engine, short)
    add(engine, long)
    finish(engine, short)
    finish(engine, long)
    # A pass is three parts, an answer gets a token before each. What is left of the prompt is
    # longer than what steps take with them, so it is a second pass.
    assert runner.steps == [[1], [1], [1], [32], [1], [1], [1], [8], [1, 1]]
    assert [len(seq.sink.events) for seq in (short, long)] == [7, 2]


@pytest.mark.parametrize("event", ["cancelled", "late", "fails", "interrupted"])
def test_a_pass_that_loses_somebody_is_begun_again_without_it(event):
    runner = FakeRunner(max_batch_tokens=32, num_parts=3)
    engine = engine_of(runner)
    leave_passes(engine, [1])
    leaves, stays = (
        sequence(range(i, 12 + i), SamplingParams(temperature=0, max_tokens=3)) for i in (0, 50)
    )
    expected = run(engine_of(FakeRunner()), range(50, 62), max_tokens=3, temperature=0)[0]
    add(engine, leaves)
    add(engine, stays)
    engine.step()
    assert leaves.in_pass
    assert stays.in_pass
    if event == "cancelled":
        leaves.cancelled = True
    elif event == "late":
        leaves.deadline_s = engine.clock()
    elif event == "fails":

        def fail(batch):
            raise KVRangeError("too large", 0 if batch.token_ids[0] == 0 else 1)

        runner.before_forward = fail
        engine.step()
        runner.before_forward = lambda batch: None
        with pytest.raises(KVRangeError):
            finish(engine, leaves)
    else:
        engine.abort(KernelError("gone"))
        with pytest.raises(KernelError, match="gone"):
            finish(engine, stays)
        stays = sequence(range(50, 62), SamplingParams(temperature=0, max_tokens=3))
        add(engine, stays)
    assert finish(engine, stays)[0] == expected
    assert not stays.in_pass
    assert [12] in runner.steps
    assert [12, 12] not in runner.steps
    assert_all_blocks_back(engine)


def test_others_that_come_and_go_in_every_pass_do_not_hold_up_the_first():
    runner = FakeRunner(num_blocks=16, max_batch_tokens=32, num_parts=3)
    engine = engine_of(runner)
    leave_passes(engine, [1])
    first = sequence(range(40), SamplingParams(temperature=0, max_tokens=1))
    add(engine, first)
    for number in range(40):  # a share of each pass is the first one's: 8 tokens
        other = sequence([number, *range(20)], SamplingParams(max_tokens=1))
        add(engine, other)
        engine.step()
        other.cancelled = True
        if first.ended:
            break
    assert first.ended


def test_blocks_taken_from_a_pass_end_it():
    runner = FakeRunner(n_ctx=64, block_size=16, num_blocks=4, num_parts=40)
    engine = engine_of(runner)
    leave_passes(engine, [1])
    answer = sequence([1], SamplingParams(temperature=0, max_tokens=60))
    book = sequence(range(30), SamplingParams(temperature=0, max_tokens=2))
    add(engine, answer)
    add(engine, book)
    assert finish(engine, answer)[1] == "length"  # it needed the blocks of the pass
    assert (
        finish(engine, book)[0]
        == run(engine_of(FakeRunner()), range(30), max_tokens=2, temperature=0)[0]
    )
    assert_all_blocks_back(engine)


def test_a_conversation_that_goes_on_computes_the_new_turn_only():
    runner = FakeRunner()
    engine = engine_of(runner)
    prompt = list(range(100))
    answer, _, first = run(engine, prompt)
    assert first.cached_tokens == 0
    before = runner.num_tokens
    longer = [*prompt, *answer, 7, 8, 9]
    warm, _, second = run(engine, longer)
    # The last token of the answer was sampled and never computed.
    assert second.cached_tokens == len(prompt) + len(answer) - 1
    assert runner.num_tokens - before == 4 + 5
    cold, _, _ = run(engine_of(FakeRunner()), longer)
    assert warm == cold
    # A prompt that differs in the middle keeps what comes before.
    changed = [*prompt[:70], 200, *prompt[71:]]
    warm, _, third = run(engine, changed)
    assert third.cached_tokens == 70
    assert warm == run(engine_of(FakeRunner()), changed)[0]
    # The same prompt again: its last token is computed, for the logits.
    assert run(engine, changed)[2].cached_tokens == 99
    assert_all_blocks_back(engine)


def test_end_token_and_ignore_eos():
    runner = FakeRunner(model=scripted(b"ab", 3))
    engine = engine_of(runner)
    seq = sequence([1, 2, 3], SamplingParams(), eos_token_ids=[EOS])
    add(engine, seq)
    assert finish(engine, seq)[:2] == ([97, 98], "stop")
    seq = sequence([1, 2, 3], SamplingParams(ignore_eos=True, max_tokens=4), eos_token_ids=[EOS])
    add(engine, seq)
    assert finish(engine, seq)[:2] == ([97, 98, EOS, EOS], "length")


def test_without_max_tokens_the_context_ends_the_answer():
    tokens, reason, timings = run(engine_of(FakeRunner(n_ctx=20)), [1, 2, 3], max_tokens=None)
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
        run(engine_of(runner), prompt, max_tokens=max_tokens)
    assert all(number in str(caught.value) for number in numbers)
    assert runner.num_tokens == 0


def test_requests_that_cannot_be_served():
    engine = engine_of(FakeRunner())
    with pytest.raises(RequestError, match="empty"):
        run(engine, [])
    with pytest.raises(RequestError, match=r"token id 264 .* 0 to 263"):
        run(engine, [1, 264])
    with pytest.raises(RequestError, match="token id -1"):
        run(engine, [-1])


def test_rows_come_in_order_once_each_and_in_bounded_steps():
    runner = FakeRunner(max_batch_tokens=32)
    engine = engine_of(runner)
    engine.scheduler.max_rows = 10
    seen = []
    seq = sequence(
        range(45),
        SamplingParams(max_tokens=0),
        on_rows=lambda start, rows: seen.append((start, rows.copy())),
    )
    add(engine, seq)
    assert finish(engine, seq)[:2] == ([], "length")
    assert [(start, len(rows)) for start, rows in seen] == [
        (0, 10), (10, 10), (20, 10), (30, 10), (40, 5)
    ]  # fmt: skip
    assert (seen[3][1][2] == logits_after(range(33))).all()
    assert_all_blocks_back(engine)


def test_cancelled_sequences_leave_and_the_others_stay():
    engine = engine_of(FakeRunner())
    stopped, other = (sequence([i], SamplingParams(max_tokens=50)) for i in (1, 2))
    add(engine, stopped)
    add(engine, other)
    engine.step()
    stopped.cancelled = True
    _, reason, timings = finish(engine, stopped)
    assert reason == "cancelled"
    assert timings.completion_tokens == 1
    assert finish(engine, other)[1] == "length"
    waiting = sequence([3], SamplingParams())
    add(engine, waiting)
    waiting.cancelled = True
    engine.step()
    assert finish(engine, waiting)[:2] == ([], "cancelled")
    assert_all_blocks_back(engine)


def test_an_error_of_one_sequence_spares_the_others():
    def model(history):
        logits = logits_after(history)
        if history[0] == 66:
            logits[5] = float("nan")
        return logits

    engine = engine_of(FakeRunner(model=model))
    bad, good = (sequence([i], SamplingParams(max_tokens=3)) for i in (66, 1))
    add(engine, bad)
    add(engine, good)
    with pytest.raises(ValueError, match="NaN"):
        finish(engine, bad)
    assert finish(engine, good)[1] == "length"
    assert_all_blocks_back(engine)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom"), KernelError("gone")])
def test_a_broken_step_ends_those_in_it_and_spares_the_others(error):
    runner = FakeRunner(max_batch_tokens=1)
    engine = engine_of(runner)

    def fail(batch):
        raise error

    expected, _, _ = run(engine, [1, 2])
    one, two = (sequence([i], SamplingParams(max_tokens=3)) for i in (1, 2))
    add(engine, one)
    add(engine, two)
    runner.before_forward = fail
    if isinstance(error, Exception):
        assert engine.step()
    else:
        with pytest.raises(type(error)):
            engine.step()
    runner.before_forward = lambda batch: None
    with pytest.raises(KernelError):
        finish(engine, one)
    assert finish(engine, two)[1] == "length"
    assert run(engine, [1, 2])[0] == expected
    assert_all_blocks_back(engine)


def test_an_unread_sequence_waits_and_gives_way():
    runner = FakeRunner(n_ctx=64, block_size=16, num_blocks=4)
    engine = engine_of(runner)
    unread, other = (sequence([i], SamplingParams(max_tokens=50, seed=1)) for i in (1, 2))
    expected = run(engine_of(FakeRunner()), [1], max_tokens=50, seed=1)[0]
    add(engine, unread)
    for _ in range(20):
        engine.step()
    unread.sink.full = True
    assert not engine.step()
    assert len(unread.block_table) == 2
    assert len(unread.sink.events) == 20
    add(engine, other)  # needs all four blocks
    assert finish(engine, other)[1] == "length"
    assert unread.block_table == []
    assert not engine.step()
    unread.sink.full = False
    assert finish(engine, unread)[0] == expected
    assert_all_blocks_back(engine)


def test_unread_sequences_keep_no_places():
    engine = engine_of(FakeRunner(n_ctx=64, num_blocks=100))
    unread = [sequence([i], SamplingParams(max_tokens=9)) for i in range(64)]
    for seq in unread:
        add(engine, seq)
    engine.step()
    engine.step()
    for seq in unread:
        seq.sink.full = True
    assert not engine.step()
    assert run(engine, [1, 2])[1] == "length"
    for seq in unread:
        seq.sink.full = False
        assert finish(engine, seq)[1] == "length"
    assert_all_blocks_back(engine)


def test_a_late_sequence_ends_with_what_it_has():
    engine = engine_of(FakeRunner())
    seq = sequence([1], SamplingParams(max_tokens=9))
    add(engine, seq)
    engine.step()
    seq.deadline_s = engine.clock()
    engine.step()
    tokens, reason, _ = finish(engine, seq)
    assert (len(tokens), reason) == (1, "cancelled")
    assert_all_blocks_back(engine)
