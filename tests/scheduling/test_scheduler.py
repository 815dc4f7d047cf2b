"""The scheduler by itself: budgets kept, blocks conserved, everybody finishes, nobody starves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastllm.scheduling import job as job_module
from fastllm.scheduling.job import Job
from fastllm.scheduling.scheduler import MAX_PASSED, Scheduler
from tests.by_hand import assert_blocks_conserved

WHOLE = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def few_are_short():
    """Long prompts of a few tokens, so that small examples have both kinds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "SHORT_TOKENS", 6)
        yield


def advance(scheduler, plan, lengths):
    """Compute a plan; a job that has caught up gains a token until it has its length."""
    for job, count in plan:
        job.num_computed_tokens += count
        if job.num_missing:
            continue
        if len(job.token_ids) >= lengths[job]:
            scheduler.release(job, keep=True)
        else:
            job.token_ids.append(7)
            scheduler.settle(job)


def turn(scheduler, beside, chunk, lengths):
    """A step and a whole pass, as the engine does them; what was computed."""
    plan = scheduler.step(beside)
    advance(scheduler, plan, lengths)
    return plan + pass_through(scheduler, chunk, lengths)


def pass_through(scheduler, chunk, lengths):
    """A pass that nobody comes into between its parts."""
    plan = scheduler.long_prompts(chunk)
    for job, _ in plan:
        job.in_pass = False
    advance(scheduler, plan, lengths)
    return plan


def assert_sound(plan, scheduler, max_tokens, max_rows):
    jobs = [job for job, _ in plan]
    assert len(set(jobs)) == len(jobs)
    assert sum(count for _, count in plan) <= max_tokens
    rows = sum(count if job.all_rows else 1 for job, count in plan)
    assert rows <= max_rows
    for job, count in plan:
        assert 0 < count <= job.num_missing
        assert not job.stalled
        assert job in scheduler.running
        assert len(job.block_table) * scheduler_block_size(scheduler) >= (
            job.num_computed_tokens + count
        )


def scheduler_block_size(scheduler):
    return scheduler._block_size


class Scheduling(RuleBasedStateMachine):
    """Jobs come, stall, resume, are cancelled and computed in any order."""

    @initialize(
        block_size=st.sampled_from([1, 2, 16]),
        max_tokens=st.integers(1, 24),
        max_rows=st.integers(1, 9),
        max_num_seqs=st.integers(1, 4),
        spare=st.integers(0, 6),
        short_context=st.sampled_from([0, 0, 20]),
    )
    def begin(self, block_size, max_tokens, max_rows, max_num_seqs, spare, short_context):
        self.longest = 40
        self.max_tokens, self.max_rows = max_tokens, max_rows
        self.max_num_seqs = max_num_seqs
        num_blocks = -(-self.longest // block_size) + spare
        self.scheduler = Scheduler(
            num_blocks, block_size, max_tokens, max_rows, max_num_seqs, short_context
        )
        self.lengths = {}
        self.under_way = []  # of a pass

    def jobs(self):
        return [*self.scheduler.running, *self.scheduler.waiting]

    @rule(
        prompt=st.integers(1, 30), answer=st.integers(0, 10), rows=st.booleans(), tail=st.booleans()
    )
    def arrive(self, prompt, answer, rows, tail):
        job = Job([*range(prompt - 1), 99 if tail else prompt], all_rows=rows)
        self.lengths[job] = prompt + answer
        self.scheduler.add(job)

    @rule(beside=st.integers(0, 24), steps=st.integers(1, 5))
    def step(self, beside, steps):
        for _ in range(steps):
            plan = self.scheduler.step(beside)
            assert_sound(plan, self.scheduler, self.max_tokens, self.max_rows)
            assert all(job.short and not job.in_pass for job, _ in plan)
            advance(self.scheduler, plan, self.lengths)

    @rule(chunk=st.integers(1, 24))
    def begin_a_pass(self, chunk):
        if self.under_way:
            return
        plan = self.scheduler.long_prompts(chunk)
        assert_sound(plan, self.scheduler, self.max_tokens, self.max_rows)
        assert all(job.in_pass and not job.short for job, _ in plan)
        self.under_way = [(job, count, list(job.block_table)) for job, count in plan]

    @rule()
    def end_the_pass(self):
        """As the engine does: it counts if all are still in it; then their blocks are theirs."""
        left, self.under_way = self.under_way, []
        through = all(job.in_pass for job, _, _ in left)
        for job, _, table in left:
            if job.in_pass:
                assert job.block_table == table
            job.in_pass = False
        if through:
            advance(self.scheduler, [(job, count) for job, count, _ in left], self.lengths)

    @precondition(lambda self: self.jobs())
    @rule(data=st.data())
    def stall_or_resume(self, data):
        job = data.draw(st.sampled_from(self.jobs()))
        job.stalled = not job.stalled

    @precondition(lambda self: self.jobs())
    @rule(data=st.data(), keep=st.booleans())
    def leave(self, data, keep):
        self.scheduler.release(data.draw(st.sampled_from(self.jobs())), keep=keep)

    @invariant()
    def conserved(self):
        assert_blocks_conserved(self.scheduler)
        assert len(self.scheduler.running) <= self.max_num_seqs
        arrivals = [job.arrival for job in self.scheduler.waiting]
        assert arrivals == sorted(arrivals)

    def teardown(self):
        """From wherever it is, everybody who is read finishes."""
        if not hasattr(self, "scheduler"):
            return
        for job in self.jobs():
            job.stalled = False
        self.end_the_pass()
        left = sum(self.lengths[job] + 1 for job in self.jobs())
        # The first job gets on in each turn, so as many turns as all have tokens are enough; twice
        # for those that LongRoPE's other factors begin again.
        for _ in range(2 * left + 2):
            if not self.jobs():
                break
            assert turn(self.scheduler, 1, 1, self.lengths)
        assert not self.jobs()
        self.scheduler.session.drop()
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_blocks


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def of(num_blocks=100, max_tokens=32, max_num_seqs=8):
    return Scheduler(num_blocks, 16, max_tokens, 1000, max_num_seqs)


def test_answers_first_then_the_shortest_prompt_then_the_others():
    scheduler = of()
    answer, book, novel, question, other = (
        Job(range(n)) for n in (1, 500, 100, 4, 5)
    )  # the answer came first
    for job in (answer, book, novel, other, question):
        scheduler.add(job)
    assert scheduler.step(beside=6) == [(answer, 1), (question, 4), (other, 2)]
    # a pass is for the long ones: the first has a fourth of it, the shortest takes the rest
    assert scheduler.long_prompts(WHOLE) == [(book, 8), (novel, 24)]
    assert scheduler.step(beside=6) == [(answer, 1), (question, 4), (other, 2)]


def test_the_first_prompt_gets_a_share_beside_any_number_of_short_ones():
    scheduler = of()
    book = Job(range(500))
    scheduler.add(book)
    lengths = {book: 500}
    passes = 0
    while book in (*scheduler.waiting, *scheduler.running):
        for _ in range(2):  # more than a pass can take
            shorter = Job([*range(30), 9])
            lengths[shorter] = 31
            scheduler.add(shorter)
        turn(scheduler, WHOLE, WHOLE, lengths)
        passes += 1
    assert passes <= 500 // (32 // 4) + 1


def test_a_lone_prompt_takes_what_it_is_given():
    scheduler = of()
    job = Job(range(500))
    scheduler.add(job)
    assert scheduler.step(beside=8) == []
    assert scheduler.long_prompts(WHOLE) == [(job, 32)]
    assert scheduler.step(beside=8) == []
    job.in_pass = False
    assert scheduler.long_prompts(16) == [(job, 16)]


def test_the_rest_of_a_long_prompt_is_a_short_one():
    scheduler = of()
    job = Job(range(37))
    scheduler.add(job)
    scheduler.step(WHOLE)
    pass_through(scheduler, WHOLE, {job: 38})
    assert scheduler.long_prompts(WHOLE) == []
    assert scheduler.step(WHOLE) == [(job, 5)]


def test_who_loses_its_blocks_is_in_no_pass():
    scheduler = of(num_blocks=4)
    answer, book = Job(range(4)), Job(range(100, 140))
    for job in (answer, book):
        scheduler.add(job)
    lengths = {answer: 60, book: 41}
    advance(scheduler, scheduler.step(WHOLE), lengths)
    assert [job for job, _ in scheduler.long_prompts(WHOLE)] == [book]
    while book.in_pass:
        advance(scheduler, scheduler.step(WHOLE), lengths)
    assert book in scheduler.waiting
    assert book.block_table == []


def test_a_short_prompt_passes_one_that_waits_for_blocks_but_not_for_ever():
    scheduler = of(num_blocks=10)
    first, big = Job(range(100)), Job(range(150))
    lengths = {first: 1000, big: 151}
    scheduler.add(first)
    turn(scheduler, WHOLE, WHOLE, lengths)
    scheduler.add(big)
    passed = 0
    for _ in range(MAX_PASSED + 3):
        short = Job([5, 6])
        lengths[short] = 2
        scheduler.add(short)
        scheduler.step(WHOLE)
        passed += short in scheduler.running
        if short in scheduler.running:
            scheduler.release(short, keep=False)
        assert big not in scheduler.running
    assert passed == MAX_PASSED
    scheduler.release(first, keep=False)
    scheduler.step(WHOLE)
    assert big in scheduler.running


def test_stalled_jobs_give_way_first_and_come_back_only_when_read():
    scheduler = of(num_blocks=4)
    stalled, other = Job(range(30)), Job(range(100, 160))
    lengths = {stalled: 31, other: 61}
    scheduler.add(stalled)
    scheduler.step(WHOLE)
    pass_through(scheduler, 16, lengths)
    stalled.stalled = True
    scheduler.add(other)
    while other in (*scheduler.waiting, *scheduler.running):
        turn(scheduler, WHOLE, WHOLE, lengths)
    assert scheduler.waiting == [stalled]
    assert turn(scheduler, WHOLE, WHOLE, lengths) == []
    stalled.stalled = False
    assert turn(scheduler, WHOLE, WHOLE, lengths) == [(stalled, 30)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=12), st.integers(0, 3))
def test_the_oldest_that_runs_gets_on_in_every_turn(lengths, spare):
    scheduler = Scheduler(-(-50 // 4) + spare, 4, 8, 8, 64)
    jobs = [Job([*range(length)]) for length in lengths]
    whole = {job: len(job.token_ids) + 8 for job in jobs}
    for job in jobs:
        scheduler.add(job)
    while scheduler.running or scheduler.waiting:
        plan = scheduler.step(3)
        oldest = min(scheduler.running, key=lambda job: job.arrival)
        advance(scheduler, plan, whole)
        plan += pass_through(scheduler, 8, whole)
        assert oldest in [job for job, _ in plan]
