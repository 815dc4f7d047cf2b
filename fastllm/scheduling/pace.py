"""Pace: how many tokens of prompts a step may carry while somebody waits for a single one.

A step that carries n prompt tokens beside the answers that run takes about ``decode + n * cost``
seconds. Both are measured: the first from steps without a prompt, the second from those with one.
The cost of a token grows with its position (attention), and a prompt's chunks follow each other, so
the last step says what the next one costs. The budget changes no bit of any answer, only when it
comes (docs/ARCHITECTURE.md, the same-bits law).
"""

from __future__ import annotations

# Beside a prompt, a token of an answer may take so many times what it takes alone. Larger: prompts
# run in larger chunks and read the weights less often. The promise is 5 for the slowest 1 %.
SLOWER = 4.0
# A lone prompt's step, at most: who comes meanwhile waits half of it.
ALONE_S = 0.25
MIN_TOKENS = 8  # fewer do not pay for a pass over the weights
GRAIN = 64  # of chunks of a lone prompt: whole pages
FIRST_TOKENS = 32  # before anything was measured


class Pace:
    """Budgets from measured times.

    Parameters
    ----------
    max_tokens : int
        Tokens of a step.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._decode_s: dict[int, float] = {}  # by the bits of how many answers run
        self._cost_s: float | None = None

    def note(self, num_decodes: int, num_prompt_tokens: int, step_s: float) -> None:
        """Learn from a step."""
        kind = num_decodes.bit_length()
        if num_prompt_tokens == 0:
            # Downwards faster than upwards: what disturbs a step only ever makes it longer.
            old = self._decode_s.get(kind, step_s)
            self._decode_s[kind] = old + (step_s - old) * (0.5 if step_s < old else 0.125)
            return
        cost = max(step_s - self._decode_s.get(kind, 0.0), 0.0) / num_prompt_tokens
        old = cost if self._cost_s is None else self._cost_s
        self._cost_s = (old + cost) / 2

    def beside(self, num_decodes: int) -> int:
        """Tokens of prompts for a step that somebody waits for; 0: measure one without first."""
        decode_s = self._decode_s.get(max(num_decodes, 1).bit_length())
        if decode_s is None and num_decodes:
            return 0
        if decode_s is None or self._cost_s is None:
            return min(FIRST_TOKENS, self._max_tokens)
        return self._tokens((SLOWER - 1) * decode_s, MIN_TOKENS)

    def alone(self) -> int:
        """Tokens of prompts for a step that nobody else waits for."""
        if self._cost_s is None:
            return self._max_tokens
        return self._tokens(ALONE_S, GRAIN) // GRAIN * GRAIN or self._max_tokens

    def _tokens(self, seconds: float, least: int) -> int:
        cost_s = self._cost_s or 0.0
        fit = seconds / cost_s if cost_s > 0 else self._max_tokens
        return min(max(int(min(fit, self._max_tokens)), least), self._max_tokens)
