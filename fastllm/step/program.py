"""A decoder and its packed weights to the table of operations that the native step runs.

The table is written once per loaded model. Row counts, positions and block tables of a batch are
not in it: they stand in the context block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastllm.cache.kv_cache import KVCache
from fastllm.errors import UnsupportedError
from fastllm.kernels import ops
from fastllm.kernels.activations import KINDS
from fastllm.kernels.kv_page import KV_TYPES, padded_head_dim
from fastllm.kernels.words import (
    ACTIVATIONS,
    NORMS,
    ROPE_STYLES,
    ROW_WORDS,
    Op,
    Span,
    Words,
)
from fastllm.models.layers import MLP, Attention, Branch, Decoder, Layer, Linear, Mixer, Norm
from fastllm.step.buffers import Buffers, Rows, Tiles
from fastllm.step.rope_table import RopeTable
from fastllm.step.weights import PackedMatrix, Weights

_LOG2E = math.log2(math.e)
_NO_NORM = -1
MAX_GROUP = 128  # query heads of a kv head that fit the scratch of a tile


def _float_bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


class Program:
    """The table of operations, and the tables that its rows point at.

    Attributes
    ----------
    head : int
        Number of the first op that works on logit rows only.
    cuts : list of int
        Numbers of the first ops of the layers (0 for the first one). There the rows of `x` are all
        that is alive, so a batch may be left and taken up again.
    labels : list of str
        What each op is, for whoever measures: an op's name, or the role of a product's weight.
    """

    def __init__(self, functions: Mapping[str, int]) -> None:
        self._functions = functions
        self._rows: list[list[int]] = []
        self._tables: list[NDArray[np.int64]] = []
        self.labels: list[str] = []
        self.head = 0
        self.cuts: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        op: type[Words],
        *,
        function: str | None = None,
        label: str | None = None,
        span: Span = Span.TOKENS,
        barrier: bool = True,
        **words: float,
    ) -> None:
        """Append an op.

        Parameters
        ----------
        op : type of Words
        function : str, optional
            Name of the compiled function; default: the op's own.
        label : str, optional
            What it is called in `labels`; default: the op's name.
        span : Span
            The rows it runs over.
        barrier : bool
            Whether all threads meet after it.
        **words : int or float
            The op's own words, by their names in lower case; those not given are 0. A float is
            stored as the bits of a float32.
        """
        row = [0] * ROW_WORDS
        row[Op.FUNCTION] = self._functions[function or ops.op_name(op)]
        row[Op.SPAN], row[Op.BARRIER] = span, barrier
        for name, value in words.items():
            row[op[name.upper()]] = _float_bits(value) if isinstance(value, float) else int(value)
        self._rows.append(row)
        self.labels.append(label or ops.op_name(op))

    def place(self, table: NDArray[np.int64]) -> int:
        """Address of a table that lives as long as the program."""
        self._tables.append(table)
        return table.ctypes.data

    def table(self) -> NDArray[np.int64]:
        """int64[num_ops, ROW_WORDS]."""
        return np.array(self._rows, np.int64).reshape(-1, ROW_WORDS)


class Writer:
    """Writes the program of one model.

    Parameters
    ----------
    decoder, weights, cache
        What is computed, with what, and where keys and values go.
    ropes : mapping
        (rope index, style) -> table.
    buffers : Buffers
        Written once to learn the sizes, and again after ``buffers.allocate()``.
    functions : mapping
        Name -> machine address of ops and products.
    logits : Rows
        Where the logits appear, as many rows as are computed at once.
    """

    def __init__(
        self,
        decoder: Decoder,
        weights: Weights,
        cache: KVCache,
        ropes: Mapping[tuple[int, str], RopeTable],
        buffers: Buffers,
        functions: Mapping[str, int],
        logits: Rows,
    ) -> None:
        self.decoder, self.weights, self.cache = decoder, weights, cache
        self.ropes, self.buffers, self.functions = ropes, buffers, functions
        self.logits = logits
        self.program = Program(functions)
        self.num_attentions = 0

    def write(self) -> Program:
        """Return the program; addresses are 0 until the buffers are allocated."""
        self.program = Program(self.functions)
        self.num_attentions = 0  # written so far: each has its own place in the cache
        decoder = self.decoder
        hidden = decoder.config.hidden_size
        x = self.buffers.rows("x", hidden)
        if decoder.project_in is not None:
            matrix = self.matrix(decoder.project_in)
            embedded = self.buffers.rows("embedded", matrix.columns)
            tiles = self.inputs("projected", embedded, None, matrix.columns, [decoder.project_in])
            self.multiply(decoder.project_in, tiles, x)
        if decoder.positions is not None:
            rows = self.buffers.rows("positions", hidden)
            self.program.add(
                ops.Add, out=x.address, out_stride=x.stride, source=rows.address,
                source_stride=rows.stride, columns=hidden,
            )  # fmt: skip
        for i, layer in enumerate(decoder.layers):
            self.program.cuts.append(len(self.program) if i else 0)
            self.layer(layer, x)
        self.head(x)
        return self.program

    # ------------------------------------------------------------------ layers
    def layer(self, layer: Layer, x: Rows) -> None:
        """One layer: its branches one after the other, or side by side."""
        if layer.parallel:
            self.parallel(layer.branches, x)
            return
        for branch in layer.branches:
            mixer = branch.mixer
            tiles = self.inputs(
                mixer.use, x, branch.input_norm, self.decoder.config.hidden_size, mixer.inputs
            )
            self.residual(x, branch, tiles)

    def parallel(self, branches: Sequence[Branch], x: Rows) -> None:
        """All branches read x before any of them adds to it."""
        hidden = self.decoder.config.hidden_size
        readers: dict[Norm | None, list[Branch]] = {}
        for branch in branches:
            readers.setdefault(branch.input_norm, []).append(branch)
        tiles = {}
        for norm, group in readers.items():
            linears = [linear for branch in group for linear in branch.mixer.inputs]
            tiles[norm] = self.inputs(group[0].mixer.use, x, norm, hidden, linears)
        for branch in branches:
            self.mixer(branch.mixer, tiles[branch.input_norm], x, add=True)

    def residual(self, x: Rows, branch: Branch, tiles: dict[str, Tiles]) -> None:
        """x = sum_norm(x + output_norm(mixer))."""
        hidden = self.decoder.config.hidden_size
        if branch.output_norm is None:
            self.mixer(branch.mixer, tiles, x, add=True)
        else:
            out = self.buffers.rows("branch", hidden)
            self.mixer(branch.mixer, tiles, out, add=False)
            self.norm(branch.output_norm, out, hidden, out=x, add=True)
        if branch.sum_norm is not None:
            self.norm(branch.sum_norm, x, hidden, out=x)

    def mixer(self, mixer: Mixer, tiles: dict[str, Tiles], out: Rows, add: bool) -> None:
        """out (+)= mixer of what `tiles` hold."""
        if isinstance(mixer, Attention):
            self.attention(mixer, tiles, out, add)
        elif isinstance(mixer, MLP):
            self.mlp(mixer, tiles, out, add)
        else:
            raise UnsupportedError(f"layers of kind {mixer.use!r} have no kernels")

    def attention(self, a: Attention, tiles: dict[str, Tiles], out: Rows, add: bool) -> None:
        """q, k, v; rotate and store; attend; project."""
        index = self.num_attentions
        self.num_attentions += 1
        group = a.num_heads // a.num_kv_heads
        if group > MAX_GROUP:
            raise UnsupportedError(
                f"{a.q.weight}: {group} query heads share a kv head; at most {MAX_GROUP} are built"
            )
        dim = padded_head_dim(a.head_dim)
        projected = []
        for name, linear in (("q", a.q), ("k", a.k), ("v", a.v)):
            rows = self.buffers.rows(name, self.matrix(linear).padded_rows)
            self.multiply(linear, tiles, rows, barrier=name == "v")
            projected.append(rows)
        q, k, v = projected
        queries = self.buffers.raw("queries", self.buffers.max_tokens * a.num_heads * dim * 4)
        pages, page_stride = self.cache.layer_addresses[index], self.cache.block_stride
        style, rotary_dim, table = 0, 0, 0
        if a.rope is not None:
            style = ROPE_STYLES[a.rope_style]
            rotary_dim = self.decoder.ropes[a.rope].rotary_dim
            table = self.ropes[a.rope, a.rope_style].address
        q_norm = self.vector(a.q_norm.weight) if a.q_norm else 0
        k_norm = self.vector(a.k_norm.weight) if a.k_norm else 0
        eps = a.q_norm.eps if a.q_norm else 1e-6
        cached: dict[str, Any] = {
            "queries": queries, "pages": pages, "page_stride": page_stride,
            "kv_type": KV_TYPES[self.cache.kv_type], "num_heads": a.num_heads,
            "num_kv_heads": a.num_kv_heads, "head_dim": a.head_dim,
        }  # fmt: skip
        self.program.add(
            ops.Rope, **cached,
            q=q.address, k=k.address, v=v.address,
            q_stride=q.stride, k_stride=k.stride, v_stride=v.stride,
            style=style, rotary_dim=rotary_dim, angles=table, scale=float(a.scale * _LOG2E),
            q_norm=q_norm, k_norm=k_norm, eps=float(eps),
        )  # fmt: skip
        width = a.num_heads * a.head_dim
        attended = self.buffers.rows("attended", width)
        self.program.add(
            ops.Attention, **cached,
            window=a.sliding_window or 0, cap=float((a.softcap or 0.0) * _LOG2E),
            out=attended.address, out_stride=attended.stride,
        )  # fmt: skip
        merged = self.tiles_for("merged", [a.o], width)
        first, *others = merged.values()
        self.program.add(
            ops.Merge, num_heads=a.num_heads, head_dim=a.head_dim,
            out=attended.address, out_stride=attended.stride, columns=width, **_laid_out(first),
        )  # fmt: skip
        self.quantize(attended, width, others)
        self.multiply(a.o, merged, out, add=add)

    def mlp(self, mlp: MLP, tiles: dict[str, Tiles], out: Rows, add: bool) -> None:
        """Gate and up, activation, down."""
        columns = self.matrix(mlp.up).rows
        up = self.buffers.rows("up", -(-columns // 256) * 256)
        gate = 0
        if mlp.gate is not None:
            gate_rows = self.buffers.rows("gate", -(-columns // 256) * 256)
            gate = gate_rows.address
            self.multiply(mlp.gate, tiles, gate_rows, barrier=False)
        self.multiply(mlp.up, tiles, up)
        activated = self.tiles_for("activated", [mlp.down], columns)
        (target,) = activated.values()
        self.program.add(
            ops.Activate, activation=ACTIVATIONS[mlp.act], gate=gate, up=up.address,
            stride=up.stride, columns=columns, **_laid_out(target),
        )  # fmt: skip
        self.multiply(mlp.down, activated, out, add=add)

    def head(self, x: Rows) -> None:
        """Final norm, projection, logits: on the rows asked for only."""
        decoder = self.decoder
        hidden = decoder.config.hidden_size
        self.program.head = len(self.program)
        first = decoder.project_out or decoder.lm_head
        tiles = self.inputs("head", x, decoder.norm, hidden, [first], asked=True)
        if decoder.project_out is not None:
            matrix = self.matrix(decoder.project_out)
            rows = self.buffers.rows("projected_out", matrix.padded_rows)
            self.multiply(decoder.project_out, tiles, rows, span=Span.ASKED)
            (target,) = self.tiles_for("head_out", [decoder.lm_head], matrix.rows).values()
            self.program.add(
                ops.Norm, span=Span.ASKED, kind=_NO_NORM, source=rows.address,
                source_stride=rows.stride, columns=matrix.rows, **_laid_out(target),
            )  # fmt: skip
            tiles = {target.kind: target}
        logits = self.logits
        self.multiply(decoder.lm_head, tiles, logits, span=Span.ASKED)
        if decoder.logit_softcap:
            self.program.add(
                ops.Softcap, span=Span.ASKED, rows=logits.address, stride=logits.stride,
                columns=self.matrix(decoder.lm_head).rows, cap=float(decoder.logit_softcap),
            )  # fmt: skip

    # ------------------------------------------------------------------ pieces
    def matrix(self, linear: Linear) -> PackedMatrix:
        """The packed weights of a linear layer."""
        return self.weights.matrices[linear.weight]

    def vector(self, role: str | None) -> int:
        """Address of a norm weight or bias; 0 for None."""
        return self.weights.vectors[role] if role is not None else 0

    def tiles_for(self, name: str, linears: Iterable[Linear], columns: int) -> dict[str, Tiles]:
        """A tile buffer for each kind of activations that `linears` read."""
        kinds = dict.fromkeys(self.matrix(linear).layout.activations for linear in linears)
        return {kind: self.buffers.tiles(name, kind, columns) for kind in kinds}

    def inputs(
        self,
        name: str,
        source: Rows,
        norm: Norm | None,
        columns: int,
        linears: Sequence[Linear],
        asked: bool = False,
    ) -> dict[str, Tiles]:
        """Norm `source` (if there is a norm) and lay it out for `linears`.

        `asked`: only the rows whose logits are wanted, one after the other.
        """
        tiles = self.tiles_for(name, linears, columns)
        first, *others = tiles.values()
        out = self.buffers.rows("normed", columns) if others else Rows(0, 0)
        span = Span.ASKED if asked else Span.TOKENS
        self.program.add(
            ops.Norm, span=span, **self.normed(norm), source=source.address,
            source_stride=source.stride, gather=asked, columns=columns,
            out=out.address, out_stride=out.stride, **_laid_out(first),
        )  # fmt: skip
        self.quantize(out, columns, others, span)
        return tiles

    def norm(self, norm: Norm, source: Rows, columns: int, out: Rows, add: bool = False) -> None:
        """out (+)= norm(source), as floats."""
        self.program.add(
            ops.Norm, **self.normed(norm), source=source.address, source_stride=source.stride,
            columns=columns, out=out.address, out_stride=out.stride, add=add,
        )  # fmt: skip

    def normed(self, norm: Norm | None) -> dict[str, Any]:
        """Words of a norm."""
        if norm is None:
            return {"kind": _NO_NORM}
        return {
            "kind": NORMS[norm.kind],
            "weight": self.vector(norm.weight),
            "bias": self.vector(norm.bias),
            "eps": float(norm.eps),
        }

    def quantize(
        self, source: Rows, columns: int, targets: Iterable[Tiles], span: Span = Span.TOKENS
    ) -> None:
        """Lay out float rows for further kinds of weights."""
        for target in targets:
            self.program.add(
                ops.Quantize, span=span, source=source.address, source_stride=source.stride,
                columns=columns, **_laid_out(target),
            )  # fmt: skip

    def multiply(
        self,
        linear: Linear,
        tiles: Mapping[str, Tiles],
        out: Rows,
        *,
        add: bool = False,
        barrier: bool = True,
        span: Span = Span.TOKENS,
    ) -> None:
        """out (+)= x @ W.T (+ bias)."""
        matrix = self.matrix(linear)
        layout, x = matrix.layout, tiles[matrix.layout.activations]
        self.program.add(
            ops.Matmul, function=f"mm_{matrix.type}", label=linear.weight, span=span,
            barrier=barrier,
            spans=self.program.place(np.array(matrix.spans, np.int64)),
            num_spans=len(matrix.spans), num_panels=matrix.num_panels,
            panel_bytes=layout.panel_bytes(matrix.columns), units=layout.units(matrix.columns),
            tiles=x.address, token_bytes=x.token_bytes, out=out.address, out_stride=out.stride,
            bias=self.vector(linear.bias), add=add,
        )  # fmt: skip


def _laid_out(tiles: Tiles) -> dict[str, Any]:
    """Words of the activations that an op writes."""
    return {
        "tiles": tiles.address,
        "tiles_kind": KINDS[tiles.kind],
        "token_bytes": tiles.token_bytes,
    }
