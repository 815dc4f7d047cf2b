"""Budgets from measured times: what they aim at, and what they do before anything was measured."""

from fastllm.scheduling.pace import ALONE_S, FIRST_TOKENS, GRAIN, MIN_TOKENS, SLOWER, Pace


def test_a_step_without_prompts_is_measured_before_answers_share_one():
    pace = Pace(512)
    assert pace.beside(3) == 0
    pace.note(3, 0, 0.01)
    assert pace.beside(3) == FIRST_TOKENS
    assert pace.beside(2) == FIRST_TOKENS  # two and three answers are alike
    assert pace.beside(9) == 0


def test_the_budget_makes_a_step_so_many_times_longer():
    pace = Pace(512)
    pace.note(1, 0, 0.01)
    for _ in range(10):  # a token of a prompt: 1 ms
        tokens = pace.beside(1)
        pace.note(1, tokens, 0.01 + tokens * 1e-3)
    assert abs(0.01 + pace.beside(1) * 1e-3 - SLOWER * 0.01) <= 1e-3


def test_the_budget_follows_tokens_that_cost_more_and_never_vanishes():
    pace = Pace(512)
    pace.note(1, 0, 0.01)
    pace.note(1, 32, 0.02)
    before = pace.beside(1)
    for _ in range(5):
        pace.note(1, 8, 0.5)
    assert pace.beside(1) == MIN_TOKENS < before
    for _ in range(40):
        pace.note(1, 8, 0.01)
    assert pace.beside(1) == 512


def test_a_disturbed_measurement_is_forgotten():
    pace = Pace(512)
    pace.note(1, 0, 1.0)
    for _ in range(12):
        pace.note(1, 0, 0.01)
    pace.note(1, 30, 0.04)
    assert 20 <= pace.beside(1) <= 60


def test_a_lone_prompt_runs_in_whole_pages_within_its_time():
    pace = Pace(512)
    assert pace.alone() == 512
    for _ in range(20):
        pace.note(0, 512, 512 * 1e-3)
    assert pace.alone() == int(ALONE_S / 1e-3) // GRAIN * GRAIN
    for _ in range(20):
        pace.note(0, 64, 64.0)
    assert pace.alone() == GRAIN
    assert Pace(8).alone() == 8


def test_times_of_zero_bound_nothing():
    pace = Pace(32)
    pace.note(1, 0, 0.0)
    pace.note(1, 8, 0.0)
    assert (pace.beside(1), pace.alone()) == (32, 32)
