"""How well does a model predict a text? Perplexity by windows that do not overlap."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fastllm.arguments import MAX_INT, token_id_list, whole_number
from fastllm.errors import RequestError
from fastllm.sampling import logprobs as lp

if TYPE_CHECKING:
    from fastllm.llm import LLM


@dataclass(frozen=True)
class Perplexity:
    """What `perplexity` found.

    Attributes
    ----------
    ppl : float
        ``exp(nll)``.
    nll : float
        Mean negative log-likelihood of a scored token, natural logarithm.
    tokens : int
        Tokens scored.
    windows : int
    n_ctx : int
        Tokens of a window.
    bos : bool
        Whether each window began with BOS.
    """

    ppl: float
    nll: float
    tokens: int
    windows: int
    n_ctx: int
    bos: bool

    def as_dict(self) -> dict[str, float]:
        """Return the figures under their names, ready for JSON."""
        return asdict(self)


def windows(token_ids: ListLike[int], size: int, bos_token_id: int | None) -> list[list[int]]:
    """Cut a text into windows of `size` tokens, BOS included; an incomplete last one is dropped.

    Parameters
    ----------
    token_ids : sequence of int
    size : int
        At least 2.
    bos_token_id : int or None
        None: a window is `size` tokens of text.
    """
    start = [] if bos_token_id is None else [bos_token_id]
    step = size - len(start)
    last = len(token_ids) - step
    return [[*start, *token_ids[at : at + step]] for at in range(0, last + 1, step)]


def perplexity(
    llm: LLM,
    token_ids: ListLike[int],
    n_ctx: int = 512,
    *,
    add_bos: bool = False,
    on_window: Callable[[int, int, float], None] | None = None,
) -> Perplexity:
    """Score a tokenized text; every token after a window's first counts.

    Parameters
    ----------
    llm : LLM
        Its context must hold a window.
    token_ids : sequence of int
        The text without BOS.
    n_ctx : int
        Tokens of a window.
    add_bos : bool
        Begin each window with BOS (where the model's metadata asks for it).
    on_window : callable, optional
        Called after each window with its number from 1, their count, and the perplexity so far.

    Raises
    ------
    RequestError
        The text does not fill one window, or the window is too small.
    """
    n_ctx = whole_number("n_ctx", n_ctx, 0, MAX_INT)
    token_ids = token_id_list(token_ids, "token_ids")
    if n_ctx < 2:
        raise RequestError(f"n_ctx={n_ctx}: a window needs at least 2 tokens, one is only read")
    every = windows(token_ids, n_ctx, llm.bos_token_id if add_bos else None)
    if not every:
        raise RequestError(
            f"the text has {len(token_ids)} tokens and does not fill a window of {n_ctx}: "
            "choose a smaller one (-c) or a longer text"
        )
    nll_sum, count = 0.0, 0
    for number, window in enumerate(every, 1):
        nll_sum -= float(llm.token_logprobs(window).sum())
        count += len(window) - 1
        if on_window is not None:
            on_window(number, len(every), lp.perplexity(nll_sum, count))
    return Perplexity(
        ppl=lp.perplexity(nll_sum, count),
        nll=nll_sum / count,
        tokens=count,
        windows=len(every),
        n_ctx=n_ctx,
        bos=add_bos and llm.bos_token_id is not None,
    )
