"""What was planned from the headers is what is taken; what does not fit is refused before."""

import pytest

from fastllm.cache import kv_cache
from fastllm.cache.kv_cache import BLOCK_SIZE, block_bytes
from fastllm.errors import BudgetError
from fastllm.flash import feed, reader
from fastllm.formats.checkpoint import open_checkpoint
from fastllm.memory.arena import Arena
from fastllm.memory.pages import mapped
from fastllm.models.bind import bind
from fastllm.options import KV_TYPES, LoadOptions
from fastllm.step import buffers, rope_table, weights
from fastllm.step import plan as module
from fastllm.step.plan import Plan
from tests.golden.cases import case, cases, materialize
from tests.step.models import quantized, runner_of

NAMES = [model.name for model in cases()]


@pytest.fixture
def taken(monkeypatch):
    """Bytes of every mapping that a runner makes to keep."""
    sizes = []

    class Counted(Arena):
        def __init__(self, nbytes):
            super().__init__(nbytes)
            sizes.append(mapped(nbytes))

    for room in (buffers, kv_cache, rope_table, weights):
        monkeypatch.setattr(room, "Arena", Counted)
    return sizes


@pytest.fixture
def reading(monkeypatch):
    """Most bytes that files were read through at once."""
    most = []

    class Counted(Arena):
        now = 0

        def __init__(self, nbytes):
            super().__init__(nbytes)
            Counted.now += mapped(nbytes)
            most.append(Counted.now)

        def close(self):
            Counted.now -= 0 if self.closed else mapped(self.nbytes)
            super().close()

    for room in (feed, reader):
        monkeypatch.setattr(room, "Arena", Counted)
    return most


def assert_as_planned(checkpoint, taken, **options):
    plan = Plan(bind(checkpoint), LoadOptions(**options), 2)
    runner = runner_of(checkpoint, n_threads=2, **options)
    try:
        ledger = plan.ledger(runner.n_ctx)
        # what no arena holds: logits, and the rows that a pass keeps when it is left
        others = runner._logits.nbytes + runner._inputs.x.nbytes
        assert sum(taken) == ledger.weights + ledger.kv_cache + ledger.buffers - others
        assert mapped(runner.model_bytes) == ledger.weights
        assert mapped(runner._cache.nbytes) == ledger.kv_cache
        assert runner._cache.nbytes == runner.num_blocks * BLOCK_SIZE * plan.kv_bytes_per_token
        assert runner.kv_type == plan.kv_type
    finally:
        runner.close()


@pytest.mark.parametrize("kv_type", ["i16", "f16", "f32", None])
@pytest.mark.parametrize("name", NAMES)
def test_families(name, kv_type, tmp_path, taken):
    checkpoint = open_checkpoint(materialize(case(name), tmp_path / "model"))
    assert_as_planned(checkpoint, taken, kv_type=kv_type, n_batch=40)


@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_quantized_while_it_is_loaded(quant, tmp_path, taken):
    checkpoint = quantized(tmp_path / "model.gguf", "f32", heads=(2, 32))
    assert_as_planned(checkpoint, taken, quant=quant)


@pytest.mark.parametrize("type_", ["q4_k", "q8_0", "bf16"])
def test_types(type_, tmp_path, taken):
    assert_as_planned(quantized(tmp_path / "m.gguf", type_, context=9000), taken, n_ctx=8900)


@pytest.mark.parametrize(
    ("type_", "heads", "options"),
    [("q4_k", (2, 128), {}), ("f32", (2, 32), {"quant": "q8_0"}), ("bf16", (2, 32), {})],
)
@pytest.mark.parametrize("n_threads", [2, 11])
def test_what_files_are_read_through(type_, heads, options, n_threads, tmp_path, reading):
    checkpoint = quantized(tmp_path / "model.gguf", type_, heads=heads)
    options = {"n_threads": n_threads, **options}
    plan = Plan(bind(checkpoint), LoadOptions(**options), n_threads)
    runner_of(checkpoint, **options).close()
    assert 0 < max(reading) <= plan.ledger(64).reading


@pytest.fixture
def long(tmp_path):
    """A model whose context is what takes its memory."""
    return quantized(tmp_path / "model.gguf", "f32", context=1 << 20)


def with_free(monkeypatch, nbytes):
    """The process may have so much in all."""
    monkeypatch.setattr(module, "room_bytes", lambda _base: nbytes)


def test_what_was_asked_and_does_not_fit_is_refused_before_weights_are_read(long, monkeypatch):
    plan = Plan(bind(long), LoadOptions(kv_type="f16"), 1)
    with_free(monkeypatch, plan.ledger(5000).total)
    monkeypatch.setattr(weights, "Feed", None)  # nothing may be read
    with pytest.raises(BudgetError, match=r"MB weights \+ .* of 90000 tokens .*\(-c (\d+)\)") as e:
        runner_of(long, n_ctx=90000, n_threads=1, kv_type="f16")
    fits = int(str(e.value).rpartition("-c ")[2].rstrip(")"))
    assert fits >= 5000
    assert plan.ledger(fits).total <= plan.ledger(5000).total < plan.ledger(fits + 1).total
    monkeypatch.undo()
    with_free(monkeypatch, plan.ledger(5000).total)
    runner_of(long, n_ctx=fits, n_threads=1, kv_type="f16").close()


def test_a_default_context_shrinks_to_what_fits(long, monkeypatch):
    plan = Plan(bind(long), LoadOptions(), 1)
    with_free(monkeypatch, plan.ledger(4000).total)
    runner = runner_of(long, n_threads=1)
    try:
        assert runner.n_ctx_wanted == 8192
        assert 3900 <= runner.n_ctx < 8192
        assert runner.n_ctx % BLOCK_SIZE == 0
        assert plan.ledger(runner.n_ctx).total <= plan.ledger(4000).total
    finally:
        runner.close()


def test_weights_that_do_not_fit(long, monkeypatch):
    plan = Plan(bind(long), LoadOptions(), 1)
    least = plan.ledger(BLOCK_SIZE).total
    with_free(monkeypatch, least - 1)
    with pytest.raises(BudgetError, match=f"no context fits.* {-(-least // 10**6)} MB"):
        runner_of(long, n_threads=1)
    with_free(monkeypatch, least)
    runner_of(long, n_threads=1).close()


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3"])
def test_bytes_of_a_token(name, tmp_path):
    """Padded heads, all layers, and the type: what a block takes is 64 times as much."""
    bound = bind(open_checkpoint(materialize(case(name), tmp_path / "model")))
    for kv_type in KV_TYPES:
        plan = Plan(bound, LoadOptions(kv_type=kv_type), 1)
        assert plan.kv_bytes_per_token * BLOCK_SIZE == block_bytes(bound.decoder, kv_type)


def test_a_longer_context_never_takes_less(tmp_path):
    model = case("phi3")
    plan = Plan(bind(open_checkpoint(materialize(model, tmp_path / "model"))), LoadOptions(), 1)
    totals = [plan.ledger(n).total for n in range(1, 200)]
    assert totals == sorted(totals)
