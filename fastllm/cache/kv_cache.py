"""The memory of the KV cache: pages of 64 positions, addressed by (block, layer, kv head).

All layers of a block lie together: a context touches the memory of its own blocks and no more.
Layer by layer, one word would touch a huge page of every layer.
"""

from __future__ import annotations

from itertools import accumulate

from fastllm.kernels import kv_page
from fastllm.memory.arena import Arena
from fastllm.models.layers import Attention, Decoder

BLOCK_SIZE = kv_page.PAGE  # tokens of a block; a page is one block of one kv head


def page_bytes(head_dim: int, kv_type: str) -> int:
    """Bytes of keys and values of one page."""
    return kv_page.page_bytes(kv_page.padded_head_dim(head_dim), kv_page.KV_TYPES[kv_type])


def token_bytes(decoder: Decoder, kv_type: str) -> int:
    """Bytes that one token takes in all layers; the only place where this is counted."""
    return block_bytes(decoder, kv_type) // BLOCK_SIZE


def block_bytes(decoder: Decoder, kv_type: str = "f16") -> int:
    """Bytes of one block in all layers."""
    return sum(_layer_bytes(attention, kv_type) for attention in decoder.attentions)


def _layer_bytes(attention: Attention, kv_type: str) -> int:
    return attention.num_kv_heads * page_bytes(attention.head_dim, kv_type)


class KVCache:
    """Memory for `num_blocks` blocks; untouched blocks cost nothing.

    Attributes
    ----------
    nbytes : int
    layer_addresses : list of int
        Address of block 0, kv head 0 of each layer that has attention.
    block_stride : int
        Bytes from one block to the next.
    """

    def __init__(self, decoder: Decoder, num_blocks: int, kv_type: str = "f16") -> None:
        self.num_blocks = num_blocks
        self.block_stride = block_bytes(decoder, kv_type)
        self.nbytes = self.block_stride * num_blocks
        self.kv_type = kv_type
        self._arena = Arena(self.nbytes)
        sizes = [_layer_bytes(attention, kv_type) for attention in decoder.attentions]
        first = self._arena.alloc(self.nbytes, 64)
        self.layer_addresses = [first + before for before in accumulate(sizes, initial=0)][:-1]

    def close(self) -> None:
        """Free the memory."""
        self._arena.close()
