"""Angles in memory are those of `models.rope.cos_sin`, computed when they are asked for."""

import ctypes

import numpy as np
import pytest

from fastllm.config import RopeConfig
from fastllm.models.rope import cos_sin
from fastllm.step.rope_table import RopeTable

N_CTX = 2500  # two and a half times what is computed at once
ROPES = {
    "plain": RopeConfig(rotary_dim=20),
    "yarn": RopeConfig(
        rotary_dim=32, scaling="yarn", factor=4.0, original_max_position_embeddings=512
    ),
    "longrope": RopeConfig(
        rotary_dim=8,
        scaling="longrope",
        factor=2.0,
        original_max_position_embeddings=64,
        short_factor=(1.0, 1.1, 1.2, 1.3),
        long_factor=(2.0, 2.1, 2.2, 2.3),
    ),
}


def read(table, rope, regime=0):
    """float32[n_ctx, 2, rotary_dim] behind the address."""
    count = N_CTX * 2 * rope.rotary_dim
    memory = (ctypes.c_float * count).from_address(table.address + 4 * count * regime)
    return np.frombuffer(memory, np.float32).reshape(N_CTX, 2, rope.rotary_dim).copy()


@pytest.mark.parametrize("style", ["half", "pairs"])
@pytest.mark.parametrize("regime", [0, 1])
@pytest.mark.parametrize("name", ROPES)
def test_angles(name, regime, style):
    rope = ROPES[name]
    half = rope.rotary_dim // 2
    num_tokens = rope.original_max_position_embeddings + regime
    cos, sin = cos_sin(rope, num_tokens, np.arange(N_CTX))
    first = np.arange(half) if style == "half" else np.arange(half) * 2
    second = first + (half if style == "half" else 1)
    table = RopeTable(rope, style, N_CTX, num_regimes=2)
    try:
        table.ensure(N_CTX, regime)
        assert table.filled[1 - regime] == 0
        found = read(table, rope, regime)
    finally:
        table.close()
    for index, sign in ((first, -1), (second, 1)):
        np.testing.assert_array_equal(found[:, 0, index], cos)
        np.testing.assert_array_equal(found[:, 1, index], sign * sin)


def test_as_far_as_needed():
    rope = ROPES["plain"]
    table = RopeTable(rope, "half", N_CTX)
    try:
        assert table.filled == [0]
        for wanted in (1, 1000, 1025, N_CTX):
            table.ensure(wanted)
            (filled,) = table.filled
            assert wanted <= filled <= N_CTX
            found = read(table, rope)
            assert (found[:filled, 0] != 0).any(axis=1).all()
            assert (found[filled:] == 0).all()
        before = read(table, rope)
        table.ensure(1)  # never back
        np.testing.assert_array_equal(read(table, rope), before)
    finally:
        table.close()
