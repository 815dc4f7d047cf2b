"""The scheduler by itself: budgets kept, blocks conserved, everybody finishes, nobody starves."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastllm.scheduling.job import Job
from fastllm.scheduling.scheduler import MAX_PASSED, Scheduler
from tests.by_hand import assert_blocks_conserved

WHOLE = 1 << 20


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

    def jobs(self):
        return [*self.scheduler.running, *self.scheduler.waiting]

    @rule(
        prompt=st.integers(1, 30), answer=st.integers(0, 10), rows=st.booleans(), tail=st.booleans()
    )
    def arrive(self, prompt, answer, rows, tail):
        job = Job([*range(prompt - 1), 99 if tail else prompt], all_rows=rows)
        self.lengths[job] = prompt + answer
        self.scheduler.add(job)

    @rule(beside=st.integers(0, 24), alone=st.integers(1, 24), steps=st.integers(1, 5))
    def step(self, beside, alone, steps):
        for _ in range(steps):
            able = [j for j in self.scheduler.running if not j.stalled]
            plan = self.scheduler.schedule(beside, alone)
            assert_sound(plan, self.scheduler, self.max_tokens, self.max_rows)
            if able and all(j.decodes for j in able) and self.max_tokens >= 4:
                decoded = [j for j, _ in plan]
                assert decoded or not beside
            advance(self.scheduler, plan, self.lengths)

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
        left = sum(self.lengths[job] + 1 for job in self.jobs())
        # The first job gets on in each step, so as many steps as all have tokens are enough; twice
        # for those that LongRoPE's other factors begin again.
        for _ in range(2 * left + 2):
            if not self.jobs():
                break
            plan = self.scheduler.schedule(1, 1)
            assert plan
            advance(self.scheduler, plan, self.lengths)
        assert not self.jobs()
        self.scheduler.session.drop()
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_blocks


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def of(num_blocks=100, max_tokens=32, max_num_seqs=8):
    return Scheduler(num_blocks, 16, max_tokens, 1000, max_num_seqs)


def test_answers_first_then_the_shortest_prompt_then_the_others():
    scheduler = of()
    answer, book, question = Job([1]), Job(range(500)), Job(range(4))
    for job in (answer, book, question):
        scheduler.add(job)
    assert scheduler.schedule(beside=20, alone=WHOLE) == [(answer, 1), (question, 4), (book, 16)]


def test_the_first_prompt_gets_a_share_beside_any_number_of_short_ones():
    scheduler = of()
    book = Job(range(500))
    scheduler.add(book)
    lengths = {book: 500}
    steps = 0
    while book in (*scheduler.waiting, *scheduler.running):
        for _ in range(2):  # more than a step can take
            short = Job([*range(30), 9])
            lengths[short] = 31
            scheduler.add(short)
        advance(scheduler, scheduler.schedule(WHOLE, WHOLE), lengths)
        steps += 1
    assert steps <= 500 // (32 // 4 - 1) + 1


def test_a_lone_prompt_takes_what_it_is_given():
    scheduler = of()
    job = Job(range(500))
    scheduler.add(job)
    assert scheduler.schedule(beside=8, alone=WHOLE) == [(job, 32)]
    assert scheduler.schedule(beside=8, alone=16) == [(job, 16)]


def test_nothing_but_answers_where_a_step_without_prompts_is_to_be_measured():
    scheduler = of()
    answer, book = Job([1]), Job(range(500))
    scheduler.add(answer)
    scheduler.add(book)
    assert scheduler.schedule(beside=0, alone=WHOLE) == [(answer, 1)]


def test_a_short_prompt_passes_one_that_waits_for_blocks_but_not_for_ever():
    scheduler = of(num_blocks=10)
    first, big = Job(range(100)), Job(range(150))
    lengths = {first: 1000, big: 151}
    scheduler.add(first)
    scheduler.schedule(WHOLE, WHOLE)
    scheduler.add(big)
    passed = 0
    for _ in range(MAX_PASSED + 3):
        short = Job([5, 6])
        lengths[short] = 2
        scheduler.add(short)
        plan = scheduler.schedule(WHOLE, WHOLE)
        passed += short in scheduler.running
        for job, count in plan:
            if job is not first:
                job.num_computed_tokens += count
        if short in scheduler.running:
            scheduler.release(short, keep=False)
        assert big not in scheduler.running
    assert passed == MAX_PASSED
    scheduler.release(first, keep=False)
    scheduler.schedule(WHOLE, WHOLE)
    assert big in scheduler.running


def test_stalled_jobs_give_way_first_and_come_back_only_when_read():
    scheduler = of(num_blocks=4)
    stalled, other = Job(range(30)), Job(range(100, 160))
    scheduler.add(stalled)
    scheduler.schedule(WHOLE, WHOLE)
    stalled.stalled = True
    scheduler.add(other)
    lengths = {stalled: 31, other: 61}
    while other in (*scheduler.waiting, *scheduler.running):
        advance(scheduler, scheduler.schedule(WHOLE, WHOLE), lengths)
    assert scheduler.waiting == [stalled]
    assert scheduler.schedule(WHOLE, WHOLE) == []
    stalled.stalled = False
    assert scheduler.schedule(WHOLE, WHOLE) == [(stalled, 30)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=12), st.integers(0, 3))
def test_the_oldest_that_runs_gets_on_in_every_step(lengths, spare):
    scheduler = Scheduler(-(-50 // 4) + spare, 4, 8, 8, 64)
    jobs = [Job([*range(length)]) for length in lengths]
    whole = {job: len(job.token_ids) + 8 for job in jobs}
    for job in jobs:
        scheduler.add(job)
    while scheduler.running or scheduler.waiting:
        plan = scheduler.schedule(3, 8)
        assert min(scheduler.running, key=lambda job: job.arrival) in [job for job, _ in plan]
        advance(scheduler, plan, whole)
