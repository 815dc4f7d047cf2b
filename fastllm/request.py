"""What is asked and what comes back: plain data that crosses every room.

`SamplingParams` says how to answer, `Completion` is a whole answer, `Chunk` a piece of a streamed
one. Everything is checked here, at the door, so that nothing behind has to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fastllm.arguments import MAX_INT, boolean, real_number, shown, whole_number
from fastllm.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled"]

# What the fields of `SamplingParams` may be, ends included.
REAL_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}
LARGEST = {
    "top_k": MAX_INT,
    "seed": (1 << 64) - 1,
    "max_tokens": MAX_INT,
    "logprobs": 1000,
    "prompt_logprobs": 1000,
}


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    The chain is llama.cpp's: penalties, ``top_k``, ``top_p``, ``min_p``, then ``temperature``.
    The defaults are its defaults too, so that an answer has the same character there and here.

    Attributes
    ----------
    temperature : float
        0 is greedy: the largest logit, the lowest id among equals; the rest of the chain is idle.
    top_k : int
        Keep the k likeliest tokens; 0 keeps all.
    top_p : float
        Keep the likeliest tokens until their probabilities reach this sum; 1 keeps all.
    min_p : float
        Keep tokens at least this share of the likeliest one's probability; 0 keeps all.
    repetition_penalty : float
        Logits of tokens already in the prompt or the answer are divided by it when positive and
        multiplied when negative; 1 is off.
    presence_penalty, frequency_penalty : float
        Subtracted from the logit of a token of the answer: once, and once for each occurrence.
    seed : int or None
        Same seed, same prompt, same tokens, whatever else runs. None draws a fresh one.
    max_tokens : int or None
        Tokens of the answer at most; None: until the model ends it or the context is full.
        0 computes the prompt only (for ``prompt_logprobs``).
    stop : tuple of str
        The answer ends before the first of these strings. One string may be given bare.
    logprobs : int or None
        Report the log-probability of each token, with that many likeliest alternatives.
    prompt_logprobs : int or None
        The same for the tokens of the prompt.
    ignore_eos : bool
        Go on past the model's own end token (for measuring).

    Raises
    ------
    RequestError
        A value outside its range; the text names it and the range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _stop(self.stop))
        for name, (low, high) in REAL_RANGES.items():
            object.__setattr__(self, name, real_number(name, getattr(self, name), low, high))
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if value is not None or name == "top_k":
                object.__setattr__(self, name, whole_number(name, value, 0, largest))

        object.__setattr__(self, "ignore_eos", boolean("ignore_eos", self.ignore_eos))

    @property
    def greedy(self) -> bool:
        """True when nothing is drawn: the largest logit wins."""
        return self.temperature == 0


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    every = (value,) if isinstance(value, str) else value
    if not isinstance(every, (list, tuple, set, frozenset)) or not all(
        isinstance(one, str) and one for one in every
    ):
        raise RequestError(
            f"stop={shown(value)}: must be a text or a list of texts, each of length >= 1"
        )
    return tuple(map(str.__str__, every))  # of an enum its value, not its name


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of one token under the model itself (before penalties and temperature).

    Attributes
    ----------
    token_id : int
    logprob : float
        Natural logarithm.
    top : tuple of (int, float)
        The likeliest tokens and their log-probabilities, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Timings:
    """Where the time of one answer went, in seconds of wall clock.

    Attributes
    ----------
    prompt_tokens, cached_tokens, completion_tokens : int
        `cached_tokens` of the prompt were still in the KV cache and not computed again.
    queue_s, prompt_s, decode_s : float
        Waiting for a place; first step to first token; first token to last.
    ttft_s : float
        Submission to first token.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    prompt_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0

    @property
    def prompt_tps(self) -> float:
        """Tokens of the prompt computed per second."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.prompt_s)

    @property
    def decode_tps(self) -> float:
        """Tokens generated per second after the first, which belongs to the prompt."""
        return _rate(self.completion_tokens - 1, self.decode_s)

    def as_dict(self) -> dict[str, float]:
        """Return the figures under their names, rates included, ready for JSON."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "queue_s": self.queue_s,
            "prompt_s": self.prompt_s,
            "decode_s": self.decode_s,
            "ttft_ms": self.ttft_s * 1e3,
            "prompt_tps": self.prompt_tps,
            "decode_tps": self.decode_tps,
        }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; the last one has a `finish_reason` and the `timings`.

    Attributes
    ----------
    text : str
        New text, never half a character and never the beginning of a stop string; may be empty.
    token_ids : tuple of int
        Tokens sampled since the chunk before (their text may come later).
    finish_reason : str or None
        "stop" (end token or stop string), "length", "cancelled"; None while it goes on.
    logprobs : tuple of TokenLogprob
        One for each of `token_ids` when asked for.
    timings : Timings or None
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    timings: Timings | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer.

    Attributes
    ----------
    text : str
        The answer, cut before the stop string. Empty for a model without a tokenizer.
    token_ids : list of int
        Sampled tokens without the end token; those of a stop string are included.
    finish_reason : str
        "stop", "length" or "cancelled".
    logprobs : list of TokenLogprob or None
        One for each of `token_ids`.
    prompt_logprobs : list of (TokenLogprob or None) or None
        One for each of `prompt_token_ids`; the first is None, since nothing comes before it.
    prompt_token_ids : list of int
    timings : Timings
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    prompt_token_ids: list[int] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
