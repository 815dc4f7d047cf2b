"""A tiny llama in a GGUF file, by the format's own library."""

from __future__ import annotations

import gguf
import numpy as np

LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, VOCAB, CONTEXT = 2, 64, 96, 4, 2, 40, 128


def write(path, *, weights=True, tokenizer=False, architecture="llama"):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    if tokenizer:
        tokens = ["<unk>", "<s>", "</s>", *(chr(ord("a") + i) for i in range(VOCAB - 4)), "ab"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3] + [1] * (VOCAB - 3))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)

    def add(name, *shape):
        values = rng.normal(size=shape, scale=0.2).astype(np.float32)
        writer.add_tensor(name, values)

    if weights:
        add("token_embd.weight", VOCAB, HIDDEN)
        add("output_norm.weight", HIDDEN)
        kv = KV_HEADS * HIDDEN // HEADS
        for i in range(LAYERS):
            add(f"blk.{i}.attn_norm.weight", HIDDEN)
            add(f"blk.{i}.ffn_norm.weight", HIDDEN)
            for name, out, inner in (
                ("attn_q", HIDDEN, HIDDEN),
                ("attn_k", kv, HIDDEN),
                ("attn_v", kv, HIDDEN),
                ("attn_output", HIDDEN, HIDDEN),
                ("ffn_gate", MLP, HIDDEN),
                ("ffn_up", MLP, HIDDEN),
                ("ffn_down", HIDDEN, MLP),
            ):
                add(f"blk.{i}.{name}.weight", out, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
