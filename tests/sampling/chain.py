"""The chain read aloud: sort, cut by rank, by cumulative probability, by share of the best."""

import numpy as np

from fastllm.kernels.pick_sizes import FEW

# The kernel adds weights in float32 and finds a cut in its own order of additions.
ROUNDING = 2e-6


def allowed(logits, params, random):
    """Tokens that the plain chain may choose: one, or its neighbour where rounding decides."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    ranked = order[: params.top_k or None]
    exact = logits.astype(np.float64)
    shares = np.exp(exact[ranked] - exact[ranked[0]])
    reached = np.cumsum(shares / shares.sum())
    cuts = {len(ranked)}
    if params.top_p < 1:
        cuts = {
            min(len(ranked), int(np.searchsorted(reached, params.top_p + nudge)) + 1)
            for nudge in (-ROUNDING, 0, ROUNDING)
        }
    found = set()
    for cut in cuts:
        kept = [i for i in ranked[:cut] if exact[i] - exact[order[0]] >= _log(params.min_p)]
        if not 0 < params.top_k <= FEW:
            kept.sort()  # a wide draw walks the ids, a short one the order of the chain
        weights = np.exp((exact[kept] - exact[order[0]]) / params.temperature)
        ends = np.cumsum(weights / weights.sum())
        for nudge in (-ROUNDING, 0, ROUNDING):
            place = int(np.searchsorted(ends, min(max(random + nudge, 0), 1), side="right"))
            found.add(kept[min(place, len(kept) - 1)])
    return found


def _log(min_p):
    return np.log(min_p) if min_p > 0 else -np.inf
