"""The table of operations that the step runs: which int64 word means what.

``step.program`` writes these words, ``kernels.interpreter`` reads them; nothing else knows them.
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
    GATE_SPIN = 5  # polls of an idle worker before it sleeps
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
    WIDE_CACHE = 24  # 1: keys and values are float32, 0: half precision
    PREFETCH = 25  # 1: matrix kernels ask memory ahead at one token
    ROPE_ROWS = 26  # int32[NUM_TOKENS]: row of the rope tables; POSITIONS, but for LongRoPE
    WORDS = 32


class Op(IntEnum):
    """Words of one operation. Every op has CODE and BARRIER; the rest depends on the code."""

    CODE = 0
    BARRIER = 1  # 1: all threads meet after it
    A = 2
    B = 3
    C = 4
    D = 5
    E = 6
    F = 7
    G = 8
    H = 9
    I = 10  # noqa: E741
    J = 11
    K = 12
    L = 13
    M = 14
    N = 15
    O = 16  # noqa: E741
    P = 17
    Q = 18
    R = 19
    S = 20
    T = 21
    WORDS = 22


class Code(IntEnum):
    """What an op does. Letters: the words of `Op`.

    NORM: A kind, B source, C source stride, D columns, E weight, F bias, G eps, H float output (0:
    none), I its stride, J 1: add to it, K tiles (0: none), L tile kind, M token bytes, N 1: source
    rows are those of LOGIT_ROWS, 2: source has one row a logit row.
    MATMUL: A function, B panels, C panel bytes, D units, E num panels, F tiles, G token bytes, H
    output, I its stride, J bias, K 1: add, L 1: logit rows.
    ROPE: A q, B k, C v, D q stride, E k stride, F v stride, G queries out, H pages of the layer, I
    page stride, J heads, K kv heads, L head_dim, M style, N rotary_dim, O rope table, P scale, Q q
    norm weight, R k norm weight (0: none), S eps of both.
    ATTENTION: A queries, B pages, C page stride, D heads, E kv heads, F head_dim, G window, H cap,
    I output, J its stride.
    MERGE: as ATTENTION, K tiles, L tile kind, M token bytes, N columns.
    ACTIVATE: A function, B gate (0: not gated), C up, D stride, E columns, F tiles, G kind, H token
    bytes.
    ADD: A destination, B its stride, C source, D its stride, E columns.
    QUANTIZE: A source, B stride, C columns, D tiles, E kind, F token bytes.
    SOFTCAP: A logits, B stride, C columns, D cap.
    """

    NORM = 0
    MATMUL = 1
    ROPE = 2
    ATTENTION = 3
    MERGE = 4
    ACTIVATE = 5
    ADD = 6
    QUANTIZE = 7
    SOFTCAP = 8


# Numbers of variants, as the words hold them
NORMS = {"rms": 0, "layer": 1}
ROPE_STYLES = {"half": 1, "pairs": 2}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
