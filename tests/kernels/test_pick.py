"""The unit "pick" on every road; ``tests/sampling`` has its properties."""

import numpy as np
import pytest

from fastllm.kernels import objects
from fastllm.kernels.interpreter_codes import PICK_ARGS
from fastllm.kernels.pick_sizes import scratch_bytes
from fastllm.request import SamplingParams
from tests.sampling.chain import allowed


@pytest.fixture(scope="session")
def pick(road):
    return objects.callable_at(objects.addresses(["pick"], road)["pick"], PICK_ARGS)


@pytest.mark.parametrize("top_k", [0, 1, 40, 1000])
@pytest.mark.parametrize(("top_p", "min_p"), [(1, 0), (0.9, 0), (0.95, 0.05), (1, 0.1)])
def test_every_road_chooses_as_the_plain_chain(pick, top_k, top_p, min_p):
    params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
    least = np.log(min_p) if min_p else -np.inf
    for seed in range(5):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=1000 + 37 * seed, scale=2).astype(np.float32)
        scratch = np.empty(scratch_bytes(len(logits)), np.uint8)
        for random in (0.0, 0.2, 0.6, 0.999):
            request = np.array([1 / 0.7, top_k, top_p, least, random, 0])
            chosen = pick(logits.ctypes.data, len(logits), request.ctypes.data, scratch.ctypes.data)
            assert chosen in allowed(logits, params, random)
            assert request[5] == logits.max()
