"""What a model will take, from its headers: the ledger of `fastllm.memory`, before it is taken.

Nothing is estimated but the process itself. The program is written once against weights that have
sizes and no addresses, which tells the size of every buffer of a step; the runner allocates by the
same functions.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from fastllm.cache.kv_cache import BLOCK_SIZE, block_bytes, token_bytes
from fastllm.errors import RequestError
from fastllm.kernels.interpreter_codes import CHUNK_PAGES, scratch_layout
from fastllm.kernels.kv_page import PAGE, padded_head_dim
from fastllm.machine.memory import room_bytes
from fastllm.memory.ledger import Ledger, largest_context, settle_context
from fastllm.memory.pages import mapped
from fastllm.models import roles
from fastllm.models.bind import BoundModel
from fastllm.models.layers import Decoder
from fastllm.models.rope import short_context
from fastllm.options import LoadOptions
from fastllm.step.buffers import Buffers, Rows
from fastllm.step.program import Writer
from fastllm.step.rope_table import table_bytes
from fastllm.step.weights import PackedMatrix, packed_sizes, packed_types, reading_bytes

DEFAULT_N_CTX = 8192  # where nothing is asked: the model's own context, at most this
MAX_LOGIT_ROWS = 32  # logit rows computed at once; more are computed in turns
SPLIT_TOKENS = 16  # batches up to this size share one sequence's context between threads
# Measured, rounded up (`tests/test_model.py` compares): interpreter, libraries, heap; a token of
# the vocabulary, in the metadata, in our tables and in the tokenizer library.
PROCESS_BYTES, TOKEN_BYTES = 90_000_000, 512


@dataclass(frozen=True)
class Areas:
    """Working memory of a step besides activations.

    Attributes
    ----------
    scratch : dict of str to int
        Offsets in a thread's scratch (``scratch_layout``).
    scratch_stride : int
        Bytes of a thread's scratch.
    split_tokens, max_chunks : int
        Largest batch whose context is shared between threads; pieces it is cut into.
    partials_bytes : int
        Their partial results.
    """

    scratch: dict[str, int]
    scratch_stride: int
    split_tokens: int
    max_chunks: int
    partials_bytes: int


def areas(decoder: Decoder, widest: int, n_ctx: int, n_batch: int) -> Areas:
    """Return the working memory of a step; `widest` is the longest row of a matrix."""
    attentions = decoder.attentions
    max_dim = max(padded_head_dim(a.head_dim) for a in attentions)
    scratch = scratch_layout(widest, max_dim)
    chunks = -(-n_ctx // (PAGE * CHUNK_PAGES))
    split = min(SPLIT_TOKENS, n_batch)
    partials = split * max(a.num_heads for a in attentions) * chunks * (4 * max_dim + 64)
    return Areas(scratch, -(-scratch["bytes"] // 4096) * 4096, split, chunks, partials)


def num_regimes(decoder: Decoder, n_ctx: int) -> int:
    """Return how many sets of angles a rope table holds: 2 where LongRoPE changes within n_ctx."""
    return 2 if 0 < short_context(decoder.ropes) < n_ctx else 1


def rotations(decoder: Decoder) -> list[tuple[int, str]]:
    """Return (rope, style) of every rope table, each once however many layers share it."""
    used = ((a.rope, a.rope_style) for a in decoder.attentions)
    return list(dict.fromkeys((rope, style) for rope, style in used if rope is not None))


class Plan:
    """What loading a model with some options will take.

    Parameters
    ----------
    model : BoundModel
    options : LoadOptions
    n_threads : int
        Threads that will compute.

    Attributes
    ----------
    kv_type : str
    kv_bytes_per_token : int
        Bytes a token takes in the KV cache.
    process_bytes : int
        What the process takes besides the model's arenas.
    formats : frozenset of str
        Weight formats in memory.

    Raises
    ------
    UnsupportedError
        A matrix of a type without kernels, or layers that no kernel computes.
    """

    def __init__(self, model: BoundModel, options: LoadOptions, n_threads: int) -> None:
        types = packed_types(model, options.quant)
        self.formats = frozenset(types.values())
        self.kv_type = options.kv_type or ("f32" if self.formats == {"f32"} else "i16")
        self._decoder, self._n_threads, self._n_batch = model.decoder, n_threads, options.n_batch
        self.kv_bytes_per_token = token_bytes(model.decoder, self.kv_type)
        self.process_bytes = PROCESS_BYTES + TOKEN_BYTES * model.decoder.config.vocab_size
        self._own = model.decoder.config.max_position_embeddings
        self._asked = options.n_ctx
        self._reading = mapped(reading_bytes(model, n_threads))
        self._weights = mapped(sum(packed_sizes(model, types)))
        self._sizes = _Sizes(model, types, self.kv_type)
        self._widest = max(matrix.columns for matrix in self._sizes.matrices.values())
        head = self._sizes.matrices[model.decoder.lm_head.weight]
        self._logits = 4 * MAX_LOGIT_ROWS * head.padded_rows
        self._activations = self._written()
        rows = Buffers(self._n_batch).rows("x", model.decoder.config.hidden_size)
        self._kept = rows.stride * self._n_batch  # by a pass that is left (`Pass.keep`)

    def ledger(self, n_ctx: int, num_blocks: int | None = None) -> Ledger:
        """Return what the model takes with a context, in `num_blocks` blocks if not in its own."""
        blocks = num_blocks or -(-n_ctx // BLOCK_SIZE)
        area = areas(self._decoder, self._widest, n_ctx, self._n_batch)
        regimes, ropes = num_regimes(self._decoder, n_ctx), self._decoder.ropes
        tables = [table_bytes(ropes[rope], n_ctx, regimes) for rope, _ in rotations(self._decoder)]
        buffers = Buffers(self._n_batch)
        buffers.raw("scratch", area.scratch_stride * self._n_threads)
        buffers.raw("partials", area.partials_bytes)
        return Ledger(
            n_ctx=n_ctx,
            weights=self._weights,
            kv_cache=mapped(block_bytes(self._decoder, self.kv_type) * blocks),
            buffers=mapped(self._activations + buffers.nbytes)
            + sum(map(mapped, tables))
            + self._logits
            + self._kept,
            reading=self._reading,
            process=self.process_bytes,
        )

    def fitting_context(self) -> int:
        """Return the longest context with which the whole process fits here now; 0 for none."""
        return largest_context(self.ledger, self._own, room_bytes(self.process_bytes))

    @property
    def default_context(self) -> int:
        """Tokens of context where none are asked and memory is no matter."""
        return min(self._own, DEFAULT_N_CTX)

    def wanted_context(self) -> int:
        """Return the context to load with where memory is no matter.

        Raises
        ------
        RequestError
            More was asked than the model allows.
        """
        asked = self._asked
        if asked is not None and asked > self._own:
            raise RequestError(f"n_ctx={asked}: the model allows 1 to {self._own} tokens (-c)")
        return self.default_context if asked is None else asked

    def context(self, num_blocks: int | None = None) -> int:
        """Return the context to load with: what was asked, or what of the default fits here.

        Raises
        ------
        RequestError
            More was asked than the model allows.
        BudgetError
            There is no memory for it; see `fastllm.memory.ledger.settle_context`.
        """
        self.wanted_context()
        return settle_context(
            lambda n_ctx: self.ledger(n_ctx, num_blocks),
            asked=self._asked,
            default=self.default_context,
            longest=self._own,
            shortest=min(BLOCK_SIZE, self._own),
            free=room_bytes(self.process_bytes),
        )

    def _written(self) -> int:
        """Bytes of the activations: write the program, and see what it asks for."""
        buffers = Buffers(self._n_batch)
        sizes: Any = self._sizes  # in the places of weights and cache: addresses are all it lacks
        nowhere: dict[str, int] = defaultdict(int)
        Writer(self._decoder, sizes, sizes, sizes.ropes, buffers, nowhere, Rows(0, 0)).write()
        return buffers.nbytes


class _Sizes:
    """Stands for weights, cache and rope tables while nothing has an address."""

    def __init__(self, model: BoundModel, types: dict[str, str], kv_type: str) -> None:
        decoder = model.decoder
        self.matrices = {
            role: PackedMatrix(type_, *model.matrix(role).shape, ())
            for role, type_ in types.items()
        }
        self.vectors = dict.fromkeys(roles.vectors(decoder), 0)
        self.layer_addresses, self.block_stride = [0] * len(decoder.attentions), 0
        self.ropes: dict[tuple[int, str], _Sizes] = defaultdict(lambda: self)
        self.address, self.kv_type = 0, kv_type
