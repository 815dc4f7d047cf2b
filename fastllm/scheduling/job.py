"""Job: what the scheduler knows of a request, all of it integers."""

from __future__ import annotations

from collections.abc import Iterable

# Of a question with what a chat template puts around it: computed in the time of 15 to 25 tokens of
# an answer, and at 95 % of the speed of the longest chunks.
SHORT_TOKENS = 64


class Job:
    """Tokens that want to be computed, and the KV blocks that hold those that are.

    A job has no phase. It has ``num_computed_tokens``, and every step lets it catch up by some: a
    chunk of the prompt, or the one token sampled last (after vLLM's scheduler).

    Parameters
    ----------
    prompt_token_ids : iterable of int
    all_rows : bool
        The logits of every position are wanted, so nothing may come out of the cache.

    Attributes
    ----------
    token_ids : list of int
        Prompt and answer so far.
    num_computed_tokens : int
        Of these, how many are in the KV cache.
    num_cached_tokens : int
        Of the prompt, how many were there before this request began.
    block_table : list of int
        Its KV blocks, in order of position.
    rope_regime : int
        LongRoPE's factors that its keys are rotated by: 0 short, 1 long.
    arrival : int
        Its number in order of arrival; the lowest one always gets on.
    num_passed : int
        How many that came later were let in before it.
    stalled : bool
        It computes nothing now, since nobody takes what it has; it gives way to everybody.
    in_pass : bool
        Tokens of it are in the pass that is under way; False again when its blocks are lost.
    """

    def __init__(self, prompt_token_ids: Iterable[int], *, all_rows: bool = False) -> None:
        self.token_ids = [int(i) for i in prompt_token_ids]
        self.num_prompt_tokens = len(self.token_ids)
        self.all_rows = all_rows
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.block_table: list[int] = []
        self.rope_regime = 0
        self.arrival = 0
        self.num_passed = 0
        self.stalled = False
        self.in_pass = False

    @property
    def num_missing(self) -> int:
        """Tokens that are known and not computed yet."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def decodes(self) -> bool:
        """True when one token is missing: the next one of the answer waits for it alone."""
        return len(self.token_ids) - self.num_computed_tokens == 1

    @property
    def short(self) -> bool:
        """True when so few tokens are missing that nobody need wait for them to be computed."""
        return len(self.token_ids) - self.num_computed_tokens <= SHORT_TOKENS
