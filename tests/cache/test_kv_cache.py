"""The memory of the KV cache: sizes and places."""

from itertools import pairwise

import pytest

from fastllm.cache.kv_cache import (
    BLOCK_SIZE,
    KVCache,
    block_bytes,
    page_bytes,
)
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.kernels.kv_page import padded_head_dim
from fastllm.models.bind import bind
from tests.golden.cases import case, materialize


@pytest.fixture(params=["llama", "llama-head-dim", "gemma3", "falcon-new"])
def decoder(request, tmp_path):
    return bind(open_checkpoint(materialize(case(request.param), tmp_path / "model"))).decoder


def test_padded_head_dim():
    assert [padded_head_dim(n) for n in (1, 12, 16, 17, 64, 80, 100)] == [
        16, 16, 16, 32, 64, 80, 112,
    ]  # fmt: skip


@pytest.mark.parametrize(("kv_type", "size"), [("f16", 2), ("f32", 4)])
def test_page_bytes(kv_type, size):
    """Keys and values of 64 positions."""
    assert page_bytes(64, kv_type) == 2 * 64 * 64 * size
    assert page_bytes(18, kv_type) == 2 * 64 * 32 * size


def test_units_beside_codes():
    assert page_bytes(64, "i16") == 2 * 64 * (64 * 2 + 4)


@pytest.mark.parametrize("kv_type", ["i16", "f16", "f32"])
@pytest.mark.parametrize("num_blocks", [1, 7])
def test_layers_lie_apart(decoder, kv_type, num_blocks):
    cache = KVCache(decoder, num_blocks, kv_type)
    try:
        spans = []
        for attention, first in zip(decoder.attentions, cache.layer_addresses, strict=True):
            size = attention.num_kv_heads * page_bytes(attention.head_dim, kv_type)
            for block in range(num_blocks):
                address = first + block * cache.block_stride
                assert address % 64 == 0
                spans.append((address, address + size))
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert spans[-1][1] - spans[0][0] == cache.nbytes
        assert cache.nbytes == num_blocks * block_bytes(decoder, kv_type)
    finally:
        cache.close()


def test_all_layers_of_a_block_lie_together(decoder):
    """A short context touches the memory of its blocks, not a huge page of every layer."""
    cache = KVCache(decoder, 7)
    try:
        first, last = min(cache.layer_addresses), max(cache.layer_addresses)
        assert last - first < cache.block_stride == block_bytes(decoder)
    finally:
        cache.close()


def test_half_precision_takes_half(decoder):
    assert block_bytes(decoder, "f32") == 2 * block_bytes(decoder, "f16")
    assert block_bytes(decoder) == block_bytes(decoder, "f16")
    assert BLOCK_SIZE == 64


def test_close_twice(decoder):
    cache = KVCache(decoder, 2)
    cache.close()
    cache.close()
