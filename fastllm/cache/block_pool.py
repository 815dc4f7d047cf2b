"""BlockPool: who holds which KV block. Integers only; the arrays belong to the step."""

from __future__ import annotations

from collections.abc import Iterable

from fastllm.errors import BudgetError


class BlockPool:
    """Blocks ``0 .. num_blocks - 1`` with reference counts; free ones are given out again.

    The block freed last is given out first: its memory is the likeliest to be in a cache.

    Parameters
    ----------
    num_blocks : int
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def ref_count(self, block_id: int) -> int:
        """Return how many hold this block."""
        return self._ref_counts[block_id]

    def allocate(self, num_blocks: int = 1) -> list[int]:
        """Return `num_blocks` free blocks, each held once by the caller: all of them or none.

        Raises
        ------
        BudgetError
            Fewer are free; nothing was taken.
        """
        if num_blocks > len(self._free):
            raise BudgetError(
                f"{num_blocks} KV blocks asked, {len(self._free)} of {self.num_blocks} free: "
                "use a smaller context or fewer sequences at once"
            )
        block_ids = [self._free.pop() for _ in range(num_blocks)]
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Hold blocks once more that are held already."""
        for block_id in block_ids:
            assert self._ref_counts[block_id] > 0, f"block {block_id} is free"
            self._ref_counts[block_id] += 1

    def free(self, block_ids: Iterable[int]) -> None:
        """Let go of blocks; one that nobody holds any more becomes free."""
        for block_id in block_ids:
            assert self._ref_counts[block_id] > 0, f"block {block_id} is free"
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free.append(block_id)
