"""What the unit "pick" needs of memory, and its constants: numbers without numba."""

from __future__ import annotations

FEW = 256  # top_k up to here is kept beside the row while it passes by
PER_NAT = 64  # buckets of a nat: a cut's bucket then holds a few tokens of a usual row
BUCKETS = 20 * PER_NAT  # 152,000 tokens 20 nats down weigh 3e-4 together; they share the last one
BLOCK_TOKENS = 256  # whose weights are added before one step of the search

# Words of a request, float64 each
INVERSE_TEMPERATURE, TOP_K, TOP_P, LOG_MIN_P, RANDOM, MAXIMUM, REQUEST_WORDS = range(7)

# Offsets in the scratch: 128 bytes to spare, counts and masses of buckets, logits and ids in the
# order of the chain, sums of blocks.
COUNTS = 128
MASSES = COUNTS + 8 * BUCKETS
VALUES = MASSES + 8 * BUCKETS


def scratch_bytes(num_tokens: int) -> int:
    """Bytes of scratch for a row of `num_tokens` logits; untouched where a chain is short."""
    room = -(-max(num_tokens, 2 * FEW + 16) // 16) * 16
    return VALUES + 8 * room + 8 * (-(-num_tokens // BLOCK_TOKENS))
