"""Matrix products of every weight format: GB/s at one token, Gop/s at 512, shares of the limits.

One token reads every weight once, so its limit is the rate at which the same threads read a buffer
of the same size. 512 tokens reuse each weight; their limit is the integer dot product (which says
nothing about f32, f16 and bf16: these multiply floats).
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.limits import crew, integer_peak, memory_rate, tile_peak
from bench.matrices import FLOATS, Product
from bench.measure import note_limit, note_rate, run_beside
from fastllm.kernels.layouts import LAYOUTS, native_unit_columns

WEIGHT_BYTES = 64 << 20  # one token: far beyond a core's own caches, as a model is
REPEATS = 4  # products a round: calling the threads takes some 0.1 ms, reading a matrix 1 to 3 ms
WEIGHTS = 4 << 20  # 512 tokens: a matrix of an ordinary layer, 4.3e9 operations
PROMPT = 512
COLUMNS = (576, 4096, 8960)
CASES = [
    pytest.param(name, columns, id=f"{name}-{columns}")
    for name in LAYOUTS
    for columns in COLUMNS
    if columns % native_unit_columns(name) == 0
]


@pytest.mark.parametrize(("name", "columns"), CASES)
def test_one_token(benchmark: BenchmarkFixture, name: str, columns: int, num_threads: int) -> None:
    benchmark.group = f"one token, {num_threads} threads"
    rows = max(16, 16 * (WEIGHT_BYTES // LAYOUTS[name].panel_bytes(columns)))
    with Product(name, rows, columns, 1, num_threads) as product, crew(num_threads) as threads:
        limit = run_beside(
            benchmark,
            lambda: memory_rate(num_threads, product.nbytes),
            lambda: product(threads, REPEATS),
        )
        note_rate(benchmark, "gb_per_s", REPEATS * product.nbytes, "read_limit", limit)


@pytest.mark.parametrize(("name", "columns"), CASES)
def test_prompt(benchmark: BenchmarkFixture, name: str, columns: int, num_threads: int) -> None:
    benchmark.group = f"{PROMPT} tokens, {num_threads} threads"
    with (
        Product(name, WEIGHTS // columns, columns, PROMPT, num_threads) as product,
        crew(num_threads) as threads,
    ):
        limit = run_beside(benchmark, lambda: integer_peak(num_threads), lambda: product(threads))
        if name in FLOATS:
            benchmark.extra_info["multiplies"] = "float32"
        note_rate(benchmark, "gop_per_s", product.operations, "integer_peak", limit)
        note_limit(benchmark, product.operations, "tile_peak", tile_peak(num_threads))
