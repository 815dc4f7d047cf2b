"""Matrix products of every weight format on every road, against float64 NumPy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.kernels import objects, ops
from fastllm.kernels.activations import GROUP, token_bytes
from fastllm.kernels.interpreter_codes import MATMUL_SCRATCH, OP_ARGS
from fastllm.kernels.layouts import LAYOUTS, native_unit_columns
from fastllm.kernels.road import road_named
from fastllm.kernels.words import Context
from fastllm.quants import BLOCKS, dequantize
from fastllm.step.program import Program
from tests.kernels.samples import (
    FLOATS,
    POSSIBLE_ROADS,
    aligned,
    aligned_copy,
    pack_rows,
    random_rows,
)
from tests.naive.activations import layout_reference, quantize_reference

# Largest error of y, in units of |w| |x| (Euclidean norms of the row and of the activations), about
# twice what was measured. Integer sums are exact, so a quantized product only rounds once or twice
# a group of columns, a float product once a column.
ERROR_BLOCK32 = 1e-7
ERROR_BLOCK32_WITH_MINIMUM = 1.5e-7  # the code's part and the minimum's may cancel
ERROR_BLOCK256 = 4e-8
ERROR_FLOAT = 2e-7
ERRORS = {
    **dict.fromkeys(("q4_0", "q5_0", "q8_0", "iq4_nl"), ERROR_BLOCK32),
    **dict.fromkeys(("q4_1", "q5_1"), ERROR_BLOCK32_WITH_MINIMUM),
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"), ERROR_BLOCK256),
    **dict.fromkeys(FLOATS, ERROR_FLOAT),
}
# (rows, columns): odd rows, odd units, one unit, more columns than rows
SHAPES = ((50, 576), (33, 4096), (17, 224), (16, 32), (20, 768), (5, 20), (1, 3))


class Product:
    """A packed random matrix and its product."""

    def __init__(self, road, name, rows, columns, native=None, seed=0):
        rng = np.random.default_rng([seed, rows, columns])
        self.road, self.name, self.rows, self.columns = road, name, rows, columns
        self.layout = LAYOUTS[name]
        self.native = random_rows(name, rows, columns, rng) if native is None else native
        self.panels = pack_rows(name, self.native, columns, road)
        self.values = dequantize(name, self.native)
        unit = f"mm_{name}"
        self.call = objects.callable_at(objects.addresses([unit], road)[unit], OP_ARGS)

    def __call__(
        self,
        x,
        y=None,
        bias=None,
        add=False,
        panels=None,
        tiles=None,
        prefetch=False,
        spans=None,
        num_threads=1,
    ):
        """float32[M, rows]; `y` is written into (padded rows) and returned whole where given."""
        kind, count = self.layout.activations, len(self.panels)
        if tiles is None:
            tiles = aligned_copy(layout_reference(kind, x, self.road.largest_tile), 64)
        out = np.full((len(x), 16 * count), np.nan, np.float32) if y is None else y
        scratch = aligned(MATMUL_SCRATCH)
        first, last = panels or (0, count)
        size = self.panels.strides[0]
        if spans is None:
            spans = [(first, last - first, self.panels.ctypes.data + first * size)]
        program = Program({f"mm_{self.name}": 0})
        program.add(
            ops.Matmul, function=f"mm_{self.name}",
            spans=program.place(np.array(spans, np.int64)), num_spans=len(spans),
            num_panels=count, panel_bytes=size, units=self.layout.units(self.columns),
            tiles=tiles.ctypes.data, token_bytes=token_bytes(kind, self.columns),
            out=out.ctypes.data, out_stride=out.strides[0],
            bias=0 if bias is None else bias.ctypes.data, add=add,
        )  # fmt: skip
        context = np.zeros(Context.WORDS, np.int64)
        context[Context.THREADS] = num_threads
        context[Context.NUM_TOKENS], context[Context.PREFETCH] = len(x), prefetch
        context[Context.SCRATCH] = scratch.ctypes.data
        row = program.table()
        for thread in range(num_threads):
            assert self.call(context.ctypes.data, row.ctypes.data, thread) == 0
        return out[:, : self.rows] if y is None else out

    def inputs(self, num_tokens, seed=1):
        """float32[M, columns], tokens of different sizes."""
        rng = np.random.default_rng(seed)
        size = np.exp(rng.standard_normal((num_tokens, 1)))
        return (rng.standard_normal((num_tokens, self.columns)) * size).astype(np.float32)

    def seen(self, x):
        """What the kernel multiplies with, float64."""
        kind = self.layout.activations
        if kind == "f32":
            return x.astype(np.float64)
        codes, scales = quantize_reference(x, GROUP[kind])
        whole = codes.reshape(len(x), -1, GROUP[kind]) * scales[..., None].astype(np.float64)
        return whole.reshape(x.shape)


def same_bits(a, b):
    a, b = (np.ascontiguousarray(array).view(np.uint32) for array in (a, b))
    return np.array_equal(a, b)


@pytest.fixture(params=LAYOUTS, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module", autouse=True)
def _built(road):
    """Build what is missing side by side."""
    objects.addresses(["pack", *(f"mm_{name}" for name in LAYOUTS)], road)


@pytest.fixture(scope="module")
def product(road, name):
    return Product(road, name, 50, 3 * native_unit_columns(name) if name not in FLOATS else 70)


def test_against_float64(road, name):
    block = native_unit_columns(name)
    for rows, columns in SHAPES:
        product = Product(road, name, rows, -(-columns // block) * block)
        x = product.inputs(27)
        seen, values = product.seen(x), product.values.astype(np.float64)
        error = np.abs(product(x) - seen @ values.T)
        scale = np.linalg.norm(seen, axis=1)[:, None] * np.linalg.norm(values, axis=1)[None, :]
        assert (error / scale).max() <= ERRORS[name], (rows, columns)


@settings(max_examples=12, deadline=None)
@given(
    counts=st.lists(st.one_of(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_bits_do_not_depend_on_the_tokens_beside(product, counts, seed):
    x = product.inputs(sum(counts), seed)
    together = product(x)
    start = 0
    for count in counts:
        part = product(x[start : start + count])
        assert same_bits(part, together[start : start + count])
        start += count


def test_bits_of_more_tokens_than_share_a_pass(product):
    x = product.inputs(150)
    together = product(x)
    assert same_bits(np.concatenate([product(x[t : t + 1]) for t in range(150)]), together)


@pytest.mark.skipif(POSSIBLE_ROADS[0].name != "amx", reason="this CPU has no tiles")
@pytest.mark.parametrize("type_", LAYOUTS)
def test_the_road_amx_has_the_bits_of_avx512(type_):
    """One machine may lend its tiles and the next one not."""
    for columns in (256, 1024 + 256):
        there, here = (Product(road_named(one), type_, 40, columns) for one in ("amx", "avx512"))
        for num_tokens in (1, 15, 16, 17, 63, 64, 65, 150):
            x = there.inputs(num_tokens)
            assert same_bits(there(x), here(x))


@pytest.mark.parametrize("num_tokens", [1, 2, 13])
def test_bits_do_not_depend_on_prefetch(product, num_tokens):
    """It reads past the end of a matrix, where there may be no memory: only a hint may."""
    x = product.inputs(num_tokens)
    assert same_bits(product(x, prefetch=1), product(x))


@pytest.mark.parametrize("num_tokens", [1, 7, 70])
def test_bias_and_sum(product, num_tokens):
    rng = np.random.default_rng(2)
    x, plain = product.inputs(num_tokens), product(product.inputs(num_tokens))
    bias = aligned(64, np.float32)
    bias[: product.rows] = rng.standard_normal(product.rows)
    before = rng.standard_normal((num_tokens, 64)).astype(np.float32)
    biased = plain + bias[None, : product.rows]
    assert same_bits(product(x, bias=bias), biased)
    for chosen, expected in ((None, plain), (bias, biased)):
        y = aligned_copy(before)
        product(x, y=y, bias=chosen, add=True)
        assert same_bits(y[:, : product.rows], before[:, : product.rows] + expected)


def test_panels_are_independent(product):
    """A range of panels writes its own rows, the same bits as the whole product, nothing else."""
    x = product.inputs(13)
    whole = product(x)
    for first, last in ((0, 1), (1, 3), (3, 4), (2, 2)):
        y = aligned((13, 64), np.float32)
        y[:] = np.nan
        product(x, y=y, panels=(first, last))
        end = min(16 * last, product.rows)
        assert same_bits(y[:, 16 * first : end], whole[:, 16 * first : end])
        assert np.isnan(y[:, : 16 * first]).all()
        assert np.isnan(y[:, 16 * last :]).all()


def test_rows_of_padding_are_zero(product):
    y = aligned((3, 64), np.float32)
    y[:] = np.nan
    product(product.inputs(3), y=y)
    assert (y[:, product.rows :] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_token_that_is_not_finite_spoils_only_itself(kernels, product, value):
    x = product.inputs(9)
    sound = product(x)
    x[4, 33] = value
    y = product(x, tiles=kernels.quantize(product.layout.activations, x))
    assert not np.isfinite(y[4]).any()
    assert same_bits(np.delete(y, 4, axis=0), np.delete(sound, 4, axis=0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_spoils_only_its_row(road, name, value):
    sound = Product(road, name, 20, 256)
    native = sound.native.copy()
    if name in FLOATS:
        dtype = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[name]
        number = np.float32(value).view(np.uint32) >> 16 if name == "bf16" else value
        native.view(dtype)[5, 99] = number
    else:  # a scale: the last 16-bit float of the last block
        block = BLOCKS[name]
        fields = native.reshape(20, -1, block.bytes).view(block.record)[..., 0]
        fields["d"][5, -1] = value
    product = Product(road, name, 20, 256, native)
    x = product.inputs(5)
    y = product(x)
    assert not np.isfinite(y[:, 5]).any()
    assert same_bits(np.delete(y, 5, axis=1), np.delete(sound(x), 5, axis=1))


@pytest.mark.parametrize("type_", [name for name in LAYOUTS if name not in FLOATS])
def test_extreme_codes_do_not_saturate(road, type_):
    """Largest codes against largest activations: 16-bit pair sums must not clip on any road."""
    block = BLOCKS[type_]
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        native = np.full((16, 512 // block.elements, block.bytes), byte, np.uint8)
        fields = native.view(block.record)[..., 0]
        for field in block.record.names:
            if block.record[field] == np.dtype("<f2"):
                fields[field] = 0.5
        product = Product(road, type_, 16, 512, native.reshape(16, -1))
        for signs in (np.ones(512), -np.ones(512), np.resize([1, -1], 512)):
            x = np.stack([signs, signs * 1e-3]).astype(np.float32)
            seen, values = product.seen(x), product.values.astype(np.float64)
            scale = np.linalg.norm(seen, axis=1)[:, None] * np.linalg.norm(values, axis=1)[None, :]
            error = np.abs(product(x) - seen @ values.T)
            assert (error <= 1e-6 * scale).all()  # all round alike, so more than at random


@pytest.mark.parametrize("num_tokens", [1, 3, 40])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
@settings(max_examples=10, deadline=None)
@given(cuts=st.sets(st.integers(1, 6)))
def test_a_matrix_may_lie_in_several_places(road, num_tokens, num_threads, cuts):
    """Spans of panels, anywhere in memory and in any order: the bits of one piece."""
    product = Product(road, "q4_1", 100, 96)  # 7 panels
    x, bias = product.inputs(num_tokens), aligned_copy(np.arange(112, dtype=np.float32))
    whole = product(x, bias=bias)
    bounds = [0, *sorted(cuts), 7]
    pieces = [aligned_copy(product.panels[a:b], 64) for a, b in itertools.pairwise(bounds)]
    spans = [
        (first, len(piece), piece.ctypes.data) for first, piece in zip(bounds, pieces, strict=False)
    ]
    product.panels = np.full_like(product.panels, 0xFF)  # not where they are read any more
    found = product(x, bias=bias, spans=spans[::-1], num_threads=num_threads)
    assert same_bits(found, whole)
