import numpy as np
import pytest

from fastllm.errors import RequestError
from fastllm.request import SamplingParams, Timings


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("temperature", -0.1, "0 to 100"),
        ("temperature", float("nan"), "0 to 100"),
        ("temperature", "hot", "0 to 100"),
        ("top_p", 1.5, "0 to 1"),
        ("min_p", -1e-9, "0 to 1"),
        ("top_k", -1, "0 to"),
        ("top_k", 2.5, "0 to"),
        ("top_k", True, "0 to"),
        ("repetition_penalty", 0, "0.01 to 100"),
        ("frequency_penalty", float("inf"), "-100 to 100"),
        ("seed", -1, "0 to"),
        ("max_tokens", -1, "0 to"),
        ("logprobs", 1001, "0 to 1000"),
        ("prompt_logprobs", -2, "0 to 1000"),
    ],
)
def test_a_value_outside_its_range_is_named_with_the_range(name, value, shown):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    assert name in str(caught.value)
    assert shown in str(caught.value)


def test_empty_stop_strings_are_refused_and_bare_ones_taken():
    assert SamplingParams(stop="x").stop == ("x",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    with pytest.raises(RequestError, match="stop"):
        SamplingParams(stop=("a", ""))


def test_numpy_numbers_are_welcome():
    params = SamplingParams(top_k=np.int64(3), seed=np.int32(1), temperature=np.float32(0))
    assert params.greedy
    assert params.top_k == 3


def test_rates_leave_out_cached_tokens_and_the_first_one():
    timings = Timings(
        prompt_tokens=30, cached_tokens=10, completion_tokens=5, prompt_s=2, decode_s=1
    )
    assert timings.prompt_tps == 10
    assert timings.decode_tps == 4
    assert Timings(completion_tokens=1).decode_tps == 0
    assert timings.as_dict()["prompt_tps"] == 10
