"""Session: the KV blocks that the last answer left, for a next prompt that begins alike.

A chat's next prompt is the last prompt, its answer and a new turn. Its first tokens are in the
cache already, so only the new turn is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastllm.cache.block_pool import BlockPool


class Session:
    """Tokens of one finished sequence and the blocks that hold them.

    Parameters
    ----------
    pool : BlockPool
        Where the blocks go back to.
    block_size : int
        Tokens of a block.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool, self._block_size = pool, block_size
        self._token_ids: list[int] = []
        self._block_ids: list[int] = []
        self._rope_regime = 0

    @property
    def num_blocks(self) -> int:
        """Blocks held, all of which `drop` would free."""
        return len(self._block_ids)

    def keep(self, token_ids: list[int], block_ids: list[int], rope_regime: int = 0) -> None:
        """Hold blocks in place of those held before; `token_ids` are all in them."""
        self.drop()
        self._token_ids, self._block_ids = token_ids, block_ids
        self._rope_regime = rope_regime

    def drop(self) -> None:
        """Free everything."""
        self._pool.free(self._block_ids)
        self._token_ids, self._block_ids = [], []

    def take(self, token_ids: Sequence[int], rope_regime: int = 0) -> tuple[list[int], int]:
        """Hand over the blocks up to where a prompt differs, and free the rest.

        The last block may be shared by what is alike and what is not: it is handed over as well,
        since the new sequence is its only holder and writes over the rest. At least one token of
        the prompt is left to compute, because its logits are needed. Keys rotated by other factors
        (LongRoPE's, of another `rope_regime`) are not what the prompt needs, however alike it is.

        Returns
        -------
        block_ids : list of int
            Now the caller's.
        num_tokens : int
            Leading tokens of the prompt that are in them; where it is 0 nothing has changed.
        """
        limit = min(len(self._token_ids), len(token_ids) - 1)
        if rope_regime != self._rope_regime:
            limit = 0
        common = 0
        while common < limit and self._token_ids[common] == token_ids[common]:
            common += 1
        if common == 0:
            return [], 0
        used = -(-common // self._block_size)
        taken, spare = self._block_ids[:used], self._block_ids[used:]
        self._pool.free(spare)
        self._token_ids, self._block_ids = [], []
        return taken, common
