"""The table of types against the gguf package, and what it refuses."""

import gguf
import pytest

from fastllm.errors import FormatError, UnsupportedError
from fastllm.quants import BLOCKS, by_id, by_name, row_bytes


@pytest.mark.parametrize("name", BLOCKS)
def test_ids_and_sizes_are_those_of_gguf(name):
    block = BLOCKS[name]
    kind = gguf.GGMLQuantizationType[name.upper()]
    assert block.ggml_id == kind
    assert (block.elements, block.bytes) == gguf.GGML_QUANT_SIZES[kind]
    assert by_id(kind) is block
    assert by_name(name) is block


def test_every_type_of_the_issue_is_there():
    floats, blocks = {"f32", "f16", "bf16"}, {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1"}
    super_blocks = {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"}
    assert BLOCKS.keys() >= floats | blocks | super_blocks


def test_types_not_built_are_refused_by_name():
    for kind in gguf.GGMLQuantizationType:
        if kind.name.lower() not in BLOCKS:
            with pytest.raises(UnsupportedError, match=f"{kind.name.lower()}|id {int(kind)}"):
                by_id(kind)
    with pytest.raises(UnsupportedError, match="unknown type id 12345"):
        by_id(12345)
    with pytest.raises(UnsupportedError, match="q9_z"):
        by_name("q9_z")


def test_row_bytes():
    assert row_bytes("q4_0", 64) == 36
    assert row_bytes("f16", 3) == 6
    assert row_bytes("q4_k", 0) == 0
    for n in (33, -32):
        with pytest.raises(FormatError, match="32 elements"):
            row_bytes("q8_0", n)
