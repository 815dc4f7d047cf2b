"""Which tile a token is in: the one rule, for those who write activations and those who read them.

A *tile* is a number of tokens that are multiplied at once: a power of two, up to what the registers
of a road hold (`Road.largest_tile`). There are as many of the largest as fit, then the rest by its
binary digits: with 8 at most, 27 tokens are tiles of 8, 8, 8, 2 and 1.
"""

from __future__ import annotations

from fastllm.kernels.jit import compiled


@compiled
def tile_size(num_tokens: int, token: int, largest: int) -> int:
    """Tokens of the tile that `token` (0 <= token < num_tokens) is in.

    The tile begins at ``token & -size``. It is the highest binary digit in which `token` and
    `num_tokens` differ: above it both have the same tiles before them, there `num_tokens` has a
    tile more, and `token` is in that one.
    """
    differing = token ^ num_tokens
    size = largest
    while size > differing:
        size >>= 1
    return size


def tiles(num_tokens: int, largest: int) -> list[tuple[int, int]]:
    """[(first token, tile size)] in order."""
    out = []
    start = 0
    while start < num_tokens:
        out.append((start, tile_size(num_tokens, start, largest)))
        start += out[-1][1]
    return out
