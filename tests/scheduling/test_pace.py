"""Budgets from measured times: what they aim at, and what they do before anything was measured."""

from hypothesis import given
from hypothesis import strategies as st

from fastllm.scheduling.pace import (
    ALONE_S,
    FIRST_TOKENS,
    GRAIN,
    MIN_CHUNK,
    MIN_LONE_CHUNK,
    MIN_TOKENS,
    SLOWER,
    SLOWER_ONCE,
    Pace,
)

PARTS = 30


def test_before_anything_was_measured():
    pace = Pace(512, PARTS)
    assert pace.beside(0) == 512
    assert pace.beside(3) == MIN_TOKENS
    assert (pace.chunk(0), pace.parts(0, 512)) == (512, 1)
    assert (pace.chunk(2), pace.parts(2, 128)) == (FIRST_TOKENS, 1)


def test_short_prompts_make_a_step_so_many_times_longer():
    pace = Pace(512, PARTS)
    pace.note_step(1, 0, 0.01)
    for _ in range(10):  # a token of a prompt: 1 ms
        tokens = pace.beside(1)
        pace.note_step(1, tokens, 0.01 + tokens * 1e-3)
    assert abs(0.01 + pace.beside(1) * 1e-3 - SLOWER_ONCE * 0.01) <= 1e-3
    assert pace.beside(0) == 512  # nobody waits


def test_two_and_three_answers_are_alike():
    pace = Pace(512, PARTS)
    pace.note_step(2, 0, 0.01)
    pace.note_step(2, 20, 0.02)
    assert pace.beside(3) == pace.beside(2) > MIN_TOKENS
    assert pace.beside(9) == MIN_TOKENS


def test_the_budget_follows_tokens_that_cost_more_and_never_vanishes():
    pace = Pace(512, PARTS)
    pace.note_step(1, 0, 0.01)
    pace.note_step(1, 32, 0.02)
    before = pace.beside(1)
    for _ in range(5):
        pace.note_step(1, 8, 0.5)
    assert pace.beside(1) == MIN_TOKENS < before
    for _ in range(40):
        pace.note_step(1, 8, 0.01)
    assert pace.beside(1) == 512


def test_a_disturbed_measurement_is_forgotten():
    pace = Pace(512, PARTS)
    pace.note_step(1, 0, 1.0)
    for _ in range(12):
        pace.note_step(1, 0, 0.01)
    pace.note_step(1, 30, 0.04)
    assert 20 <= pace.beside(1) <= 60


@given(decode_us=st.integers(100, 10**6), part_us=st.integers(1, 10**4))
def test_parts_of_a_pass_take_what_an_answer_has_patience_for(decode_us, part_us):
    pace = Pace(512, PARTS)
    pace.note_step(1, 0, decode_us / 1e6)
    for _ in range(30):
        tokens = pace.chunk(1)
        parts = pace.parts(1, tokens)
        pace.note_parts(tokens, parts, tokens * parts * part_us / 1e6)
    assert parts >= 1
    assert tokens == 512 or tokens % GRAIN == 0
    assert MIN_CHUNK <= tokens <= 512
    patience_us = (SLOWER - 1) * decode_us
    assert parts == 1 or parts * tokens * part_us <= patience_us * 1.001
    if tokens > MIN_CHUNK:
        assert tokens * part_us <= patience_us * 1.001


def test_a_lone_prompt_runs_in_whole_pages_and_is_left_often():
    pace = Pace(512, PARTS)
    for _ in range(20):
        pace.note_parts(512, 1, 512 * 1e-4)
    assert pace.chunk(0) == max(int(ALONE_S / 1e-4) // GRAIN * GRAIN, MIN_LONE_CHUNK)
    assert pace.parts(0, 512) == 1
    for _ in range(20):
        pace.note_parts(512, 10, 0.01)
    assert pace.chunk(0) == 512
    assert pace.parts(0, 512) in (7, 8)  # of 1 ms in ALONE_S


def test_small_steps():
    pace = Pace(8, PARTS)
    assert pace.chunk(0) == pace.chunk(1) == 8
    pace.note_parts(8, 1, 1.0)
    assert pace.chunk(0) == 8


def test_times_of_zero_bound_nothing():
    pace = Pace(32, PARTS)
    pace.note_step(1, 0, 0.0)
    pace.note_step(1, 8, 0.0)
    pace.note_parts(32, 1, 0.0)
    assert (pace.beside(1), pace.chunk(1), pace.parts(1, 32)) == (32, 32, PARTS)
