"""A model without weights: a runner whose logits follow from the tokens it finds in its KV cache.

`FakeRunner` keeps token ids where a model keeps keys and values, in blocks, and reads the history
of a token back through the block table. So a wrong table, a position out of order or a block given
to two sequences changes the logits, as it would in a model.
"""

from __future__ import annotations

import zlib
from contextlib import nullcontext

import numpy as np

from fastllm.chat.template import ChatTemplate
from fastllm.config import ModelConfig
from fastllm.step.batch import Pass

BOS, EOS, MARK = 256, 257, 258
VOCAB_SIZE = 264


def config(bos_token_id=BOS, vocab_size=VOCAB_SIZE):
    return ModelConfig(
        architecture="fake",
        vocab_size=vocab_size,
        hidden_size=1,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=1,
        max_position_embeddings=4096,
        bos_token_id=bos_token_id,
        eos_token_ids=(EOS,),
    )


def logits_after(history, vocab_size=VOCAB_SIZE):
    """The fake model itself: a pure function of the tokens so far."""
    seed = zlib.crc32(np.asarray(history, np.int32).tobytes())
    out = np.random.default_rng(seed).normal(size=vocab_size, scale=3.0).astype(np.float32)
    out[EOS] = -30.0  # ends only where a script says so
    return out


class FakeRunner:
    isa, load_s, n_threads = "fake", 0.25, 1

    def __init__(
        self, n_ctx=512, num_blocks=None, block_size=64, max_batch_tokens=32, model=logits_after,
        bos_token_id=BOS, vocab_size=VOCAB_SIZE, short_context=0, num_parts=3,
    ):  # fmt: skip
        self.config = config(bos_token_id, vocab_size)
        self.vocab_size, self.n_ctx, self.block_size = vocab_size, n_ctx, block_size
        self.n_ctx_wanted = n_ctx
        self.num_blocks = -(-n_ctx // block_size) if num_blocks is None else num_blocks
        self.max_batch_tokens, self.model = max_batch_tokens, model
        self.model_bytes, self.num_parts = 1_000_000, num_parts
        self.short_context = short_context
        self.rope_regimes = np.zeros((self.num_blocks, block_size), np.int64)
        self.kv = np.full((self.num_blocks, block_size), -1, np.int64)
        self.num_tokens, self.steps, self.closed = 0, [], False
        self.before_forward = lambda batch: None

    def forward(self, batch):
        self.before_forward(batch)
        self._count(batch)
        return self._run(batch)

    def begin(self, batch):
        return Pass(batch)

    def go_on(self, one, parts):
        """Each part writes the tokens and reads the history, as each layer has keys of its own."""
        self.before_forward(one.batch)
        one.part += parts
        logits = self._run(one.batch)
        if one.part < self.num_parts:
            return None
        self._count(one.batch)
        return logits

    def _count(self, batch):
        self.num_tokens += len(batch.token_ids)
        self.steps.append(np.diff(batch.seq_starts).tolist())

    def _run(self, batch):
        assert not self.closed
        for array in (batch.token_ids, batch.positions, batch.seq_starts, batch.block_tables):
            assert array.dtype == np.int32
        n = len(batch.token_ids)
        assert 0 < n <= self.max_batch_tokens
        assert batch.seq_starts[0] == 0
        assert batch.seq_starts[-1] == n
        histories = []
        for s in range(len(batch.seq_starts) - 1):
            table = batch.block_tables[s]
            part = range(batch.seq_starts[s], batch.seq_starts[s + 1])
            first = int(batch.positions[part.start])
            for i, t in enumerate(part):
                position = int(batch.positions[t])
                assert position == first + i
                self.kv[table[position // self.block_size], position % self.block_size] = (
                    batch.token_ids[t]
                )
                regime = 0 if batch.rope_regimes is None else batch.rope_regimes[s]
                self.rope_regimes[table[position // self.block_size]][
                    position % self.block_size
                ] = regime
                history = self.kv[table].reshape(-1)[: position + 1].copy()
                assert (history >= 0).all()
                # keys of one sequence are all rotated alike, and for the length it has
                assert (self.rope_regimes[table].reshape(-1)[: position + 1] == regime).all()
                assert regime == 1 or not 0 < self.short_context <= position
                histories.append(history)
        rows = [self.model(histories[r]) for r in batch.logit_rows]
        return np.array(rows, np.float32).reshape(len(rows), self.vocab_size)

    def own_thread(self):
        return nullcontext()

    def close(self):
        self.closed = True


def scripted(answer: bytes, prompt_length: int):
    """A model that says `answer` after a prompt of `prompt_length` tokens, then its end token."""
    tokens = [*answer, EOS]

    def model(history):
        place = len(history) - prompt_length
        out = np.zeros(VOCAB_SIZE, np.float32)
        out[tokens[min(max(place, 0), len(tokens) - 1)]] = 9.0
        return out

    return model


class FakeTokenizer:
    """Bytes as tokens, plus BOS, EOS and a mark spelled ``<mark>``."""

    bos_token_id, eos_token_ids, add_bos = BOS, (EOS,), True
    special_ids, strips_space = frozenset({BOS, EOS, MARK}), False

    def encode(self, text, *, add_special_tokens=True, parse_special=False):
        ids = [BOS] if add_special_tokens else []
        parts = text.split("<mark>") if parse_special else [text]
        for i, part in enumerate(parts):
            ids += ([MARK] if i else []) + list(part.replace("\ufdd0", "").encode())
        return ids

    def token_bytes(self, token_id):
        return bytes([token_id]) if token_id < 256 else b""

    def decode(self, ids, **_):
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def id_to_piece(self, token_id):
        return "<mark>" if token_id == MARK else f"<{token_id:02x}>"

    def shield(self, text):
        return text.replace("<mark>", "<\ufdd0mark>")


class FakeTemplate(ChatTemplate):
    def __init__(self):
        super().__init__(
            "{% for m in messages %}<mark>{{ m.role }}:{{ m.content }}{{ '\n' }}{% endfor %}<mark>"
        )
