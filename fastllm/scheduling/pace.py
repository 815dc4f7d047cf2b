"""Pace: how long the others' next token may wait for a prompt, in tokens and in parts of a pass.

Two things are paced. A step that is run whole carries one token for each answer and, beside them,
some of short prompts: it takes about ``decode + tokens * cost`` seconds. A long prompt's chunk is a
pass of its own, left between layers whenever somebody waits: between two tokens of an answer it
runs as many of its parts as fit. All these times are measured. The cost of a token grows with its
position (attention), and a prompt's chunks follow each other, so the last one says what the next
will cost. Nothing of this changes a bit of any answer, only when it comes (docs/ARCHITECTURE.md,
the same-bits law).
"""

from __future__ import annotations

# A token of an answer may take so many times what it takes alone: beside a long prompt, which is
# there for seconds, and where short ones arrive. The promise is 5 for the slowest 1 %.
SLOWER = 2.0
SLOWER_ONCE = 4.0
# Parts of a lone prompt's pass, at most, before who came meanwhile is let in: a short prompt takes
# about as long alone, and may take three times that.
ALONE_S = 0.008
MIN_TOKENS = 8  # of short prompts in a step: fewer do not pay for a pass over the weights
GRAIN = 64  # of chunks: whole pages, and an even number of the groups that attention works in
MIN_CHUNK = (
    64  # of a long prompt beside answers: one layer of it at position 6,000 is a token's time
)
MIN_LONE_CHUNK = 256  # of one that nobody waits for: as fast as the longest
FIRST_TOKENS = 128  # of a chunk beside answers, before anything was measured


class Pace:
    """Budgets from measured times.

    Parameters
    ----------
    max_tokens : int
        Tokens of a step, and of a pass.
    num_parts : int
        Parts of a pass.
    """

    def __init__(self, max_tokens: int, num_parts: int) -> None:
        self._max_tokens, self._num_parts = max_tokens, num_parts
        self._decode_s: dict[int, float] = {}  # by the bits of how many answers run
        self._token_s: float | None = None  # of a prompt's token in a step that is run whole
        self._part_s: float | None = None  # of a token in one part of a pass

    def note_step(self, num_decodes: int, num_prompt_tokens: int, step_s: float) -> None:
        """Learn from a step that was run whole."""
        kind = num_decodes.bit_length()
        if num_prompt_tokens == 0:
            # Downwards faster than upwards: what disturbs a step only ever makes it longer.
            old = self._decode_s.get(kind, step_s)
            self._decode_s[kind] = old + (step_s - old) * (0.5 if step_s < old else 0.125)
            return
        cost = max(step_s - self._decode_s.get(kind, 0.0), 0.0) / num_prompt_tokens
        self._token_s = cost if self._token_s is None else (self._token_s + cost) / 2

    def note_parts(self, num_tokens: int, num_parts: int, parts_s: float) -> None:
        """Learn from some parts of a pass."""
        cost = parts_s / (num_tokens * num_parts)
        self._part_s = cost if self._part_s is None else (self._part_s + cost) / 2

    def beside(self, num_decodes: int) -> int:
        """Tokens of short prompts in a step; they have it to themselves where nobody decodes."""
        decode_s = self._decode_s.get(num_decodes.bit_length())
        if num_decodes == 0:
            return self._max_tokens
        if decode_s is None or self._token_s is None:
            return min(MIN_TOKENS, self._max_tokens)
        return self._tokens((SLOWER_ONCE - 1) * decode_s, self._token_s, MIN_TOKENS)

    def chunk(self, num_decodes: int) -> int:
        """Tokens of a pass: as many as leave it between layers often enough."""
        if self._part_s is None:
            return self._max_tokens if num_decodes == 0 else min(FIRST_TOKENS, self._max_tokens)
        least = MIN_CHUNK if num_decodes else MIN_LONE_CHUNK
        tokens = self._tokens(self._patience_s(num_decodes), self._part_s, least)
        return tokens // GRAIN * GRAIN or tokens

    def parts(self, num_decodes: int, num_tokens: int) -> int:
        """Parts of a pass of so many tokens, until somebody else's turn; at least one."""
        if self._part_s is None:
            return 1
        part_s = self._part_s * num_tokens
        patience_s = self._patience_s(num_decodes)
        return self._num_parts if part_s <= 0 else max(1, int(min(patience_s / part_s, 1e6)))

    def _patience_s(self, num_decodes: int) -> float:
        decode_s = self._decode_s.get(num_decodes.bit_length()) if num_decodes else None
        return ALONE_S if decode_s is None else (SLOWER - 1) * decode_s

    def _tokens(self, seconds: float, cost_s: float, least: int) -> int:
        fit = seconds / cost_s if cost_s > 0 else self._max_tokens
        return min(max(int(min(fit, self._max_tokens)), least), self._max_tokens)
