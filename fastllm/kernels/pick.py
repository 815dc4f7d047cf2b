"""Choose the next token from a row of logits: penalties are done, the rest of the chain is here.

``top_k``, ``top_p`` and ``min_p`` each keep a beginning of the same order, the larger logit first
and the lower id first among equals. What a chain keeps is therefore a *cut* in that order: a logit
and an id. It is found without sorting the vocabulary, in one of three ways:

few      1 <= top_k <= 256: the k best while the row passes by, then the chain on those
wide     else: counts and masses of buckets of 1/64 nat below the maximum; only the bucket in which
         the cut lies is sorted
none     nothing is cut off

and a token is drawn by one more pass that adds up the tempered weights of what is left, in the
order of ids, block by block. A row is one thread's work, in a fixed order of additions: the choice
depends on the row and the request alone.

A request is float64 words (``pick_sizes``): 1 / temperature (0: greedy), top_k (0: all), top_p,
ln(min_p), a random number in [0, 1); the row's maximum is returned in another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastllm.kernels.jit import compiled
from fastllm.kernels.logits import (
    above16,
    equal16,
    falls16,
    load_f64,
    maximum16,
    members16,
    store_f64,
    weight_of,
    weights16,
    worse16,
)
from fastllm.kernels.memory import (
    add16,
    load16,
    load_f32,
    load_i32,
    load_i64,
    splat16,
    store16,
    store_f32,
    store_i32,
    store_i64,
    sum16,
    zero16,
)
from fastllm.kernels.pick_sizes import (
    BLOCK_TOKENS,
    BUCKETS,
    COUNTS,
    FEW,
    INVERSE_TEMPERATURE,
    LOG_MIN_P,
    MASSES,
    MAXIMUM,
    RANDOM,
    TOP_K,
    TOP_P,
    VALUES,
)

_INFINITE = np.float32(np.inf)


@compiled
def sixteen(row: int, n: int, i: int, spare: int) -> int:
    """Address of logits 16 i to 16 i + 15; past the end they are -inf."""
    if 16 * i + 16 <= n:
        return row + 64 * i
    for j in range(16):
        at = 16 * i + j
        store_f32(spare + 4 * j, load_f32(row + 4 * at) if at < n else -_INFINITE)
    return spare


@compiled
def maximum(row: int, n: int, spare: int) -> Any:
    """The largest logit, or NaN where there is one."""
    # four chains: one would wait for its own comparison
    a = splat16(-_INFINITE)
    b, c, d = a, a, a
    for i in range(n // 64):
        at = row + 256 * i
        a, b = worse16(a, load16(at)), worse16(b, load16(at + 64))
        c, d = worse16(c, load16(at + 128)), worse16(d, load16(at + 192))
    for i in range(n // 64 * 4, (n + 15) // 16):
        a = worse16(a, load16(sixteen(row, n, i, spare)))
    return maximum16(worse16(worse16(a, b), worse16(c, d)))


@compiled
def first_of(row: int, n: int, value: float, spare: int) -> int:
    """The lowest id whose logit is `value`."""
    for i in range((n + 15) // 16):
        hits = equal16(load16(sixteen(row, n, i, spare)), value)
        if hits != 0:
            j = 0
            while (hits >> j) & 1 == 0:
                j += 1
            return 16 * i + j
    return -1


@compiled
def sort(values: int, ids: int, count: int) -> None:
    """Into the order of the chain (shell sort: no allocation, no recursion)."""
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            value, token = load_f32(values + 4 * i), load_i32(ids + 4 * i)
            j = i
            while j >= gap:
                other, its = load_f32(values + 4 * (j - gap)), load_i32(ids + 4 * (j - gap))
                if other > value or (other == value and its < token):
                    break
                store_f32(values + 4 * j, other)
                store_i32(ids + 4 * j, its)
                j -= gap
            store_f32(values + 4 * j, value)
            store_i32(ids + 4 * j, token)
        gap //= 3


@compiled
def keep(at: int, first: int, hits: int, count: int, values: int, ids: int) -> int:
    """Append the lanes of `hits`; the new count."""
    for j in range(16):
        if (hits >> j) & 1 != 0:
            store_f32(values + 4 * count, load_f32(at + 4 * j))
            store_i32(ids + 4 * count, first + j)
            count += 1
    return count


@compiled
def best(row: int, n: int, k: int, values: int, ids: int, spare: int) -> int:
    """The k first of the row, in order; how many there are."""
    count = 0
    bound = -_INFINITE
    for i in range((n + 15) // 16):
        at = sixteen(row, n, i, spare)
        # ids ascend: who only equals the k-th comes behind it
        hits = above16(load16(at), bound)
        if hits != 0:
            count = keep(at, 16 * i, hits, count, values, ids)
            if count >= 2 * k:
                sort(values, ids, count)
                count = k
                bound = load_f32(values + 4 * (k - 1))
    sort(values, ids, count)
    return min(count, k)


@compiled
def draw_few(count: int, values: int, ids: int, request: int) -> Any:
    """top_p, min_p and a draw among `count` tokens in order."""
    inverse, top_p = (
        np.float32(load_f64(request + 8 * INVERSE_TEMPERATURE)),
        load_f64(request + 8 * TOP_P),
    )
    largest = load_f32(values)
    if top_p < 1.0:
        total = 0.0
        for i in range(count):
            total += weight_of(load_f32(values + 4 * i) - largest)
        reached, kept = 0.0, 0
        while kept < count and (kept == 0 or reached < top_p * total):
            reached += weight_of(load_f32(values + 4 * kept) - largest)
            kept += 1
        count = kept
    least = load_f64(request + 8 * LOG_MIN_P)
    kept = 1
    while kept < count and load_f32(values + 4 * kept) - largest >= least:
        kept += 1
    total = 0.0
    for i in range(kept):
        total += weight_of((load_f32(values + 4 * i) - largest) * inverse)
    goal, reached = load_f64(request + 8 * RANDOM) * total, 0.0
    for i in range(kept):
        reached += weight_of((load_f32(values + 4 * i) - largest) * inverse)
        if reached > goal:
            return load_i32(ids + 4 * i)
    return load_i32(ids)


@compiled
def count_buckets(row: int, n: int, largest: float, counts: int, masses: int, spare: int) -> None:
    """How many logits fall into each bucket, and the sum of their weights."""
    for b in range(BUCKETS):
        store_i64(counts + 8 * b, 0)
        store_f64(masses + 8 * b, 0.0)
    for i in range((n + 15) // 16):
        x = load16(sixteen(row, n, i, spare))
        falls16(x, largest, spare)
        lanes = min(16, n - 16 * i)
        for j in range(lanes):
            b = load_i32(spare + 4 * j)
            store_i64(counts + 8 * b, load_i64(counts + 8 * b) + 1)
            mass = load_f64(masses + 8 * b) + load_f32(spare + 64 + 4 * j)
            store_f64(masses + 8 * b, mass)


@compiled
def collect(
    row: int, n: int, largest: float, bucket: int, values: int, ids: int, spare: int
) -> int:
    """The tokens of a bucket, in order; how many there are."""
    count = 0
    for i in range((n + 15) // 16):
        at = sixteen(row, n, i, spare)
        hits = members16(load16(at), largest, bucket)
        if 16 * i + 16 > n:
            hits &= (1 << (n - 16 * i)) - 1
        if hits != 0:
            count = keep(at, 16 * i, hits, count, values, ids)
    sort(values, ids, count)
    return count


@compiled
def draw(
    row: int, n: int, largest: float, cut: Any, last_id: int, request: int, blocks: int,
    spare: int,
) -> Any:  # fmt: skip
    """Draw among the tokens up to the cut, in the order of ids."""
    inverse = np.float32(load_f64(request + 8 * INVERSE_TEMPERATURE))
    per_block = BLOCK_TOKENS // 16
    vectors = (n + 15) // 16
    num_blocks = (vectors + per_block - 1) // per_block
    total = 0.0
    for b in range(num_blocks):
        block = zero16()
        for i in range(b * per_block, min(vectors, (b + 1) * per_block)):
            x = load16(sixteen(row, n, i, spare))
            block = add16(block, weights16(x, 16 * i, largest, inverse, cut, last_id))
        total += sum16(block)
        store_f64(blocks + 8 * b, total)
    goal = load_f64(request + 8 * RANDOM) * total
    b = 0
    while b < num_blocks - 1 and load_f64(blocks + 8 * b) <= goal:
        b += 1
    reached = load_f64(blocks + 8 * (b - 1)) if b > 0 else 0.0
    chosen = -1
    for i in range(b * per_block, min(vectors, (b + 1) * per_block)):
        x = load16(sixteen(row, n, i, spare))
        store16(spare, weights16(x, 16 * i, largest, inverse, cut, last_id))
        for j in range(16):
            weight = load_f32(spare + 4 * j)
            if weight > 0.0:
                reached += weight
                chosen = 16 * i + j
                if reached > goal:
                    return chosen
    return chosen


def pick(row: int, n: int, request: int, scratch: int) -> Any:
    """Choose a token: the unit's function, int64 arguments.

    `row` is the address of `n` float32 logits, `request` of the request's words, `scratch` of
    ``pick_sizes.scratch_bytes(n)``. Returns the id, or -1 where the largest logit is not finite.
    """
    spare = scratch
    largest = maximum(row, n, spare)
    store_f64(request + 8 * MAXIMUM, largest)
    if not (largest < _INFINITE and largest > -_INFINITE):
        return -1
    if load_f64(request + 8 * INVERSE_TEMPERATURE) == 0.0:
        return first_of(row, n, largest, spare)
    top_k, top_p = int(load_f64(request + 8 * TOP_K)), load_f64(request + 8 * TOP_P)
    room = (max(n, 2 * FEW + 16) + 15) // 16 * 16
    counts, masses, values = scratch + COUNTS, scratch + MASSES, scratch + VALUES
    ids, blocks = values + 4 * room, values + 8 * room
    if 0 < top_k <= FEW:
        return draw_few(best(row, n, top_k, values, ids, spare), values, ids, request)
    cut, last_id = -_INFINITE, n
    if 0 < top_k < n or top_p < 1.0:
        count_buckets(row, n, largest, counts, masses, spare)
        last_bucket, rank = BUCKETS - 1, n
        total = 0.0
        if 0 < top_k < n:
            seen, b = 0, 0
            while seen + load_i64(counts + 8 * b) < top_k:
                seen += load_i64(counts + 8 * b)
                total += load_f64(masses + 8 * b)
                b += 1
            last_bucket, rank = b, top_k - seen
            collect(row, n, largest, b, values, ids, spare)
            for i in range(rank):
                total += weight_of(load_f32(values + 4 * i) - largest)
            cut, last_id = load_f32(values + 4 * rank - 4), load_i32(ids + 4 * rank - 4)
        else:
            for b in range(BUCKETS):
                total += load_f64(masses + 8 * b)
        if top_p < 1.0:
            goal, reached, b = top_p * total, 0.0, 0
            while b < last_bucket and reached + load_f64(masses + 8 * b) < goal:
                reached += load_f64(masses + 8 * b)
                b += 1
            count = collect(row, n, largest, b, values, ids, spare)
            if b == last_bucket:
                count = min(count, rank)
            kept = 0
            while kept < count and (kept == 0 or reached < goal):
                reached += weight_of(load_f32(values + 4 * kept) - largest)
                kept += 1
            if kept > 0:
                cut, last_id = load_f32(values + 4 * kept - 4), load_i32(ids + 4 * kept - 4)
    edge = np.float32(largest + load_f64(request + 8 * LOG_MIN_P))
    if edge > cut:
        cut, last_id = edge, n
    return draw(row, n, largest, cut, last_id, request, blocks, spare)
