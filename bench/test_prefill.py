"""A prompt of 512 tokens: tokens a second, and the share of the integer peak."""

from __future__ import annotations

import random
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from bench.limits import integer_peak, tile_peak
from bench.measure import median_s, note_limit, note_rate, run_beside
from fastllm import LLM, SamplingParams
from fastllm.cli.summary import summarize

TOKENS = 512
ROUNDS = 5
FIRST_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def test_prefill(benchmark: BenchmarkFixture, model: Path, num_threads: int) -> None:
    benchmark.group = f"prompt of {TOKENS}, {model.name}"
    # The head works on the last token only, so it does not count.
    groups = summarize(str(model)).groups
    weights = sum(groups[name].num_values for name in ("attention", "mlp"))
    with LLM(model, n_threads=num_threads, n_ctx=TOKENS + 1) as llm:
        rng = random.Random(0)
        prompt = [rng.randrange(llm.vocab_size) for _ in range(TOKENS)]

        def read() -> None:
            llm.reset()
            llm.generate([prompt], FIRST_TOKEN)

        limit = run_beside(
            benchmark,
            lambda: integer_peak(num_threads),
            read,
            rounds=ROUNDS,
            warmup_rounds=1,
        )
        operations = 2 * weights * TOKENS
        note_rate(benchmark, "gop_per_s", operations, "integer_peak", limit)
        note_limit(benchmark, operations, "tile_peak", tile_peak(num_threads))
        seconds = median_s(benchmark)
        if seconds is not None:
            benchmark.extra_info["tokens_per_s"] = round(TOKENS / seconds, 1)
            benchmark.extra_info["isa"] = llm.isa
