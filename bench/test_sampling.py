"""Choosing a token from a row of 152,064 logits (Qwen2.5's vocabulary): one call of the sampler."""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastllm.request import SamplingParams
from fastllm.sampling.sampler import Sampler

CHAINS = {
    "greedy": SamplingParams(temperature=0),
    "default": SamplingParams(seed=1),
    "top_p": SamplingParams(temperature=0.7, top_k=0, top_p=0.95, min_p=0, seed=1),
    "temperature": SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=1),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("spread", [1, 3], ids=["flat", "peaked"])
def test_one_token(benchmark: BenchmarkFixture, chain: str, spread: float) -> None:
    logits = np.random.default_rng(0).normal(size=152_064, scale=spread).astype(np.float32)
    sampler = Sampler(CHAINS[chain])
    benchmark(sampler.sample, logits)
