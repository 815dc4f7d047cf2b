"""Scheduler: who runs, who waits, who gives way; which KV blocks belong to whom.

What is computed, in turns:

1. A step, run whole: one token for each answer that runs, since they are what somebody reads at
   this moment, and short prompts, the shortest first, within a budget while answers run.
2. Some parts of a pass over long prompts, the shortest first; the job that came first has a share
   of its own. So a question does not wait for a book, and the book gets on all the same. The pass
   is left between layers for the next step, and then gone on with (`Pace` says when).

The job that came first gets on whatever comes after it, so each one finishes some time. Blocks are
taken from stalled jobs first, then from the youngest; a job computes again later what it lost, and
the bits are the same. Nobody takes from an older one, so two can never take in turns.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from fastllm.cache.block_pool import BlockPool
from fastllm.cache.session import Session
from fastllm.scheduling.job import Job

J = TypeVar("J", bound=Job)

# The first job's part of a pass over long prompts; the rest goes to the shortest. A half would make
# shorter ones twice as late, an eighth the first one eight times slower beside a stream of them.
FIRST_SHARE = 4
# So many may pass a job that waits for more blocks than are free; then it is its turn.
MAX_PASSED = 32


class Scheduler(Generic[J]):
    """Plans steps over a fixed number of KV blocks.

    Parameters
    ----------
    num_blocks, block_size : int
        Blocks there are, and tokens that each holds. One job always fits into all of them.
    max_batch_tokens : int
        Tokens of a step.
    max_rows : int
        Rows of logits of a step.
    max_num_seqs : int
        Jobs that hold blocks at a time.
    short_context : int
        LongRoPE: longer jobs take the long factors; 0 where there is one kind of them.

    Attributes
    ----------
    waiting, running : list of Job
        In order of arrival; in order of admission.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        max_batch_tokens: int,
        max_rows: int,
        max_num_seqs: int,
        short_context: int = 0,
    ) -> None:
        self.pool = BlockPool(num_blocks)
        self.session = Session(self.pool, block_size)
        self.waiting: list[J] = []
        self.running: list[J] = []
        self.max_rows = max_rows
        self._block_size, self._max_batch_tokens = block_size, max_batch_tokens
        self._max_num_seqs, self._short_context = max_num_seqs, short_context
        self._num_arrived = 0

    def add(self, job: J) -> None:
        """Queue a job."""
        self._num_arrived += 1
        job.arrival = self._num_arrived
        self.waiting.append(job)

    def step(self, beside: int) -> list[tuple[J, int]]:
        """Return who computes how many tokens in a step that is run whole; their blocks are there.

        Parameters
        ----------
        beside : int
            Tokens that short prompts may have together.
        """
        self._admit()
        able = [job for job in self.running if job.short and not (job.stalled or job.in_pass)]
        if len(able) == 1 and able[0].decodes:  # most steps there are
            return [(able[0], 1)] if self._grow(able[0], 1, []) else []
        decodes = [job for job in able if job.decodes]
        prompts = [job for job in able if not job.decodes]
        share = min(beside, self._max_batch_tokens - len(decodes))
        # Also where answers take the whole step, the first one gets a token in.
        return self._plan(decodes, prompts, max(share, 1), part=1)

    def long_prompts(self, most: int, *, first_alone: bool = False) -> list[tuple[J, int]]:
        """Return who computes how many tokens in a pass of long prompts, and mark them.

        Parameters
        ----------
        most : int
            Tokens of the pass.
        first_alone : bool
            Only of the job that came first.
        """
        prompts = [job for job in self.running if not (job.short or job.stalled)]
        if first_alone:
            prompts = sorted(prompts, key=_arrival)[:1]
        share = max(min(most, self._max_batch_tokens), 1)
        part = share if len(prompts) == 1 else max(share // FIRST_SHARE, 1)
        plan = self._plan([], prompts, share, part)
        for job, _ in plan:
            job.in_pass = True
        return plan

    def release(self, job: J, *, keep: bool) -> None:
        """Take a job out; with `keep` its blocks stay for a next prompt that begins alike."""
        if job in self.running:
            self.running.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)
        if keep and not job.all_rows and job.num_computed_tokens:
            computed = job.token_ids[: job.num_computed_tokens]
            self.session.keep(computed, job.block_table, job.rope_regime)
        else:
            self.pool.free(job.block_table)
        job.block_table, job.in_pass = [], False

    def settle(self, job: J) -> None:
        """Note that a job has grown; one whose keys are of the wrong rope regime begins again."""
        if job.rope_regime != self._regime(job):
            self._preempt(job)

    # -- inside --------------------------------------------------------------------------------
    def _plan(
        self, decodes: list[J], prompts: list[J], share: int, part: int
    ) -> list[tuple[J, int]]:
        """Give answers a token each and prompts a share, of it a part to the first job."""
        first = min((*decodes, *prompts), key=_arrival, default=None)
        if first is None:
            return []
        order = [first, *sorted(decodes, key=_arrival), *sorted(prompts, key=_shortest)]
        plan: list[tuple[J, int]] = []
        budget, rows = self._max_batch_tokens, self.max_rows
        for place, job in enumerate(order):
            if job not in self.running or (place and job is first):
                continue
            count = 1 if job.decodes else min(job.num_missing, share, share if place else part)
            count = min(count, budget, rows if job.all_rows else budget)
            if rows == 0 or count <= 0 or not self._grow(job, count, plan):
                continue
            plan.append((job, count))
            budget -= count
            share -= 0 if job.decodes else count
            rows -= count if job.all_rows else 1
        return self._rest_to_first(plan, first, min(share, budget), rows)

    def _rest_to_first(
        self, plan: list[tuple[J, int]], first: J, share: int, rows: int
    ) -> list[tuple[J, int]]:
        """Give the first job what the others left of the prompt budget."""
        if plan and plan[0][0] is first and share > 0 and not first.decodes:
            count = plan[0][1]
            more = min(share, first.num_missing - count, rows if first.all_rows else share)
            # Nobody gives way for it: this is only what is free anyway.
            room = self.pool.num_free + len(first.block_table)
            more = min(more, room * self._block_size - first.num_computed_tokens - count)
            if more > 0 and self._grow(first, count + more, plan):
                plan[0] = (first, count + more)
        return plan

    def _admit(self) -> None:
        """Let waiting jobs in, as long as their prompts fit beside those that run."""
        if not self.waiting:
            return
        promised = sum(self._needs(j, len(j.token_ids)) for j in self.running if not j.stalled)
        passed: list[J] = []
        for job in list(self.waiting):
            if job.stalled:
                continue
            if any(other.num_passed >= MAX_PASSED for other in passed):
                break
            needs = self._needs(job, len(job.token_ids))
            busy = any(not j.stalled for j in self.running)
            if busy and promised + needs > self._room():
                passed.append(job)  # Whoever runs will finish and leave room.
                continue
            if len(self.running) >= self._max_num_seqs and not self._evict():
                break
            for other in passed:
                other.num_passed += 1
            self.waiting.remove(job)
            self.running.append(job)
            job.rope_regime = self._regime(job)
            # Only now: who waits holds no blocks, or those who run could lack them forever.
            if not job.all_rows:
                job.block_table, common = self.session.take(job.token_ids, job.rope_regime)
                job.num_computed_tokens = common
                job.num_cached_tokens = min(common, job.num_prompt_tokens)
            promised += self._needs(job, len(job.token_ids))

    def _room(self) -> int:
        stalled = sum(len(j.block_table) for j in self.running if j.stalled)
        return self.pool.num_free + self.session.num_blocks + stalled

    def _evict(self) -> bool:
        """Take its place from a stalled job; False if there is none."""
        stalled = [job for job in self.running if job.stalled]
        if stalled:
            self._preempt(stalled[-1])
        return bool(stalled)

    def _grow(self, job: J, count: int, plan: list[tuple[J, int]]) -> bool:
        """Give `job` the blocks for `count` more tokens; False if only older ones have them."""
        needed = self._needs(job, job.num_computed_tokens + count)
        if needed > self.pool.num_free:
            self.session.drop()
        while needed > self.pool.num_free:
            victim = self._victim(job, [j for j, _ in plan])
            if victim is None:
                return False
            self._preempt(victim)
        if needed > 0:
            job.block_table += self.pool.allocate(needed)
        return True

    def _victim(self, job: J, busy: list[J]) -> J | None:
        others = [j for j in self.running if j is not job and j not in busy and j.block_table]
        stalled = [j for j in others if j.stalled]
        if stalled:
            return stalled[-1]
        younger = [j for j in others if j.arrival > job.arrival]
        return max(younger, key=_arrival, default=None)

    def _preempt(self, job: J) -> None:
        self.running.remove(job)
        self.pool.free(job.block_table)
        job.block_table, job.in_pass = [], False
        job.num_computed_tokens = 0
        self.waiting.append(job)
        self.waiting.sort(key=_arrival)

    def _needs(self, job: J, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size) - len(job.block_table)

    def _regime(self, job: J) -> int:
        return int(0 < self._short_context < len(job.token_ids))


def _arrival(job: Job) -> int:
    return job.arrival


def _shortest(job: Job) -> tuple[int, int]:
    return job.num_missing, job.arrival
