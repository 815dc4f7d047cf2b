"""The memory of the KV cache: pages of 64 positions, addressed by (layer, block, kv head)."""

from __future__ import annotations

from fastllm.kernels import kv_page
from fastllm.memory.arena import Arena
from fastllm.models.layers import Decoder

BLOCK_SIZE = kv_page.PAGE  # tokens of a block; a page is one block of one kv head


def page_bytes(head_dim: int, kv_type: str) -> int:
    """Bytes of keys and values of one page."""
    return kv_page.page_bytes(kv_page.padded_head_dim(head_dim), kv_page.KV_TYPES[kv_type])


def token_bytes(decoder: Decoder, kv_type: str) -> int:
    """Bytes that one token takes in all layers; the only place where this is counted."""
    return block_bytes(decoder, kv_type) // BLOCK_SIZE


def block_bytes(decoder: Decoder, kv_type: str = "f16") -> int:
    """Bytes of one block in all layers."""
    return sum(
        attention.num_kv_heads * page_bytes(attention.head_dim, kv_type)
        for attention in decoder.attentions
    )


class KVCache:
    """Memory for `num_blocks` blocks; untouched blocks cost nothing.

    Attributes
    ----------
    nbytes : int
    layer_addresses : list of int
        Address of block 0, kv head 0 of each layer that has attention.
    layer_strides : list of int
        Bytes from one block of such a layer to the next.
    """

    def __init__(self, decoder: Decoder, num_blocks: int, kv_type: str = "f16") -> None:
        self.num_blocks = num_blocks
        self.nbytes = block_bytes(decoder, kv_type) * num_blocks
        self.kv_type = kv_type
        self._arena = Arena(self.nbytes)
        self.layer_addresses, self.layer_strides = [], []
        for attention in decoder.attentions:
            stride = attention.num_kv_heads * page_bytes(attention.head_dim, kv_type)
            self.layer_strides.append(stride)
            self.layer_addresses.append(self._arena.alloc(stride * num_blocks, 64))

    def close(self) -> None:
        """Free the memory."""
        self._arena.close()
