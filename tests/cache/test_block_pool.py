import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.cache.block_pool import BlockPool
from fastllm.errors import BudgetError

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["allocate", "share", "free"]), st.integers(0, 5)), max_size=60
)


@given(st.integers(0, 12), ACTIONS)
def test_blocks_are_conserved(num_blocks, actions):
    pool = BlockPool(num_blocks)
    holders: list[list[int]] = []  # each holds every block of its list once
    for action, number in actions:
        if action == "allocate":
            if number > pool.num_free:
                before = pool.num_free
                with pytest.raises(BudgetError, match=f"{number} KV blocks"):
                    pool.allocate(number)
                assert pool.num_free == before
            else:
                holders.append(pool.allocate(number))
        elif holders and action == "share":
            held = holders[number % len(holders)]
            pool.share(held)
            holders.append(list(held))
        elif holders:
            pool.free(holders.pop(number % len(holders)))
        counts = [sum(block in held for held in holders) for block in range(num_blocks)]
        assert [pool.ref_count(block) for block in range(num_blocks)] == counts
        assert pool.num_free == counts.count(0)


def test_the_block_freed_last_comes_first():
    pool = BlockPool(4)
    first, second = pool.allocate(), pool.allocate()
    pool.free(second)
    pool.free(first)
    assert pool.allocate(2) == first + second


def test_freeing_a_free_block_is_our_bug():
    with pytest.raises(AssertionError):
        BlockPool(2).free([0])
