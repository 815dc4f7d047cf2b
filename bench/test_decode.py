"""Generation: tokens a second, and the weights read for them as a share of the read limit."""

from __future__ import annotations

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from bench.limits import memory_rate
from bench.measure import median_s, note_rate, run_beside
from fastllm import LLM, SamplingParams

TOKENS = 64
ROUNDS = 5
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)


def test_decode(benchmark: BenchmarkFixture, model: Path, num_threads: int) -> None:
    benchmark.group = f"generation, {model.name}"
    with LLM(model, n_threads=num_threads, n_ctx=TOKENS + 1) as llm:

        def generate() -> None:
            llm.reset()
            llm.generate([[llm.vocab_size // 2]], GREEDY)

        limit = run_beside(
            benchmark,
            lambda: memory_rate(num_threads, llm.model_bytes),
            generate,
            rounds=ROUNDS,
            warmup_rounds=1,
        )
        # every token reads every matrix once; an untied input embedding is not among them
        note_rate(benchmark, "gb_per_s", TOKENS * llm.model_bytes, "read_limit", limit)
        seconds = median_s(benchmark)
        if seconds is not None:
            benchmark.extra_info["tokens_per_s"] = round(TOKENS / seconds, 1)
            benchmark.extra_info["mb_per_token"] = round(llm.model_bytes / 1e6, 1)
            benchmark.extra_info["isa"] = llm.isa
