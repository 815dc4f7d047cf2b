"""The table of operations that the step runs: which int64 word means what.

``step.program`` writes these words, the ops of ``kernels.ops`` read them; nothing else knows them.
Floats are stored as the bits of a float32 in the low half of a word.
"""

from __future__ import annotations

from enum import IntEnum


class Context(IntEnum):
    """Words of the context block: one per loaded model."""

    OPS = 0  # address of the op table
    NUM_OPS = 1
    THREADS = 2
    SYNC = 3  # address of the sync area
    SPIN = 4  # polls of a barrier before it sleeps
    SCRATCH = 6  # address of thread 0's scratch
    SCRATCH_STRIDE = 7
    NUM_TOKENS = 8
    NUM_ROWS = 9  # tokens whose logits are wanted
    LOGIT_ROWS = 10  # int32[NUM_ROWS]
    POSITIONS = 11  # int32[NUM_TOKENS]
    NUM_SEQS = 12
    SEQ_STARTS = 13  # int32[NUM_SEQS + 1]
    TABLES = 14  # int32[NUM_SEQS][TABLE_STRIDE / 4]
    TABLE_STRIDE = 15
    SEQ_OF_TOKEN = 16  # int32[NUM_TOKENS]
    SPLIT_TOKENS = 17  # batches up to this many tokens split attention over chunks
    PARTIALS = 18  # results of chunks: see interpreter
    MAX_CHUNKS = 19
    PROFILE = 20  # address of int64[NUM_OPS][2], ticks of work and of waiting, or 0
    MATMUL_SCRATCH = 21  # offsets in a thread's scratch
    HEAD_SCRATCH = 22
    ATTEND_SCRATCH = 23
    PREFETCH = 24  # 1: matrix kernels ask memory ahead at one token
    ROPE_ROWS = 25  # int32[NUM_TOKENS]: row of the rope tables; POSITIONS, but for LongRoPE
    ERROR = 26  # (number of the op that failed + 1) << 32 | its `Failure`, or 0
    ERROR_TOKEN = 27  # the token it failed at
    WORDS = 32


class Span(IntEnum):
    """Which rows an op runs over: the word of the context that counts them."""

    TOKENS = Context.NUM_TOKENS
    ASKED = Context.NUM_ROWS  # tokens whose logits are wanted, as they stand in LOGIT_ROWS


class Op(IntEnum):
    """The words that every op begins with; its own follow (``kernels.ops``)."""

    FUNCTION = 0  # address of its compiled ``run``
    SPAN = 1
    BARRIER = 2  # 1: all threads meet after it


ROW_WORDS = 26  # of the table: what the longest op needs


class Words(IntEnum):
    """Base of an op's own words; ``auto()`` counts on from those that every op has."""

    @staticmethod
    def _generate_next_value_(
        name: str,  # noqa: ARG004
        start: int,  # noqa: ARG004
        count: int,
        last_values: list[int],  # noqa: ARG004
    ) -> int:
        return len(Op) + count


class Packing(IntEnum):
    """Words of a job of the unit "pack" (``kernels.pack``)."""

    MOVES = 0  # address of a `kernels.moves.move_table`
    ROW_BYTES = 1  # of a row as the file has it
    NUM_ROWS = 2
    BLOCK_BYTES = 3
    UNITS = 4  # of a row of a panel
    DESTINATION = 5  # address of panel 0
    FIRST = 6  # panels [FIRST, LAST) are written
    LAST = 7


class Failure(IntEnum):
    """What an op returns: 0, or why the step must end."""

    NONE = 0
    HALF_RANGE = 1  # a key or value that half precision cannot hold


# Numbers of variants, as the words hold them
NORMS = {"rms": 0, "layer": 1}
ROPE_STYLES = {"half": 1, "pairs": 2}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
