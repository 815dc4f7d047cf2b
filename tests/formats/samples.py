"""Small sound files, in memory, for the format tests and the fuzzer."""

import io
import json
import os
import tempfile

import numpy as np

from fastllm.formats.gguf import read_gguf
from fastllm.formats.gguf_writer import NewTensor, Typed, write_gguf
from fastllm.formats.safetensors import read_safetensors
from fastllm.quants import BLOCKS


def metadata(num_tokens=300):
    """Keys as real models have them, one of every value type."""
    rng = np.random.default_rng(0)
    tokens = [f"tok{i}" for i in range(num_tokens - 3)] + ["\udcff\udcfe", "", "\u0120é☃"]
    return {
        "general.architecture": "llama",
        "general.name": "A sample ☃",
        "general.alignment": 32,
        "general.file_type": 2,
        "llama.block_count": 1,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": rng.standard_normal(num_tokens, np.float32),
        "tokenizer.ggml.token_type": np.ones(num_tokens, np.int32),
        "tokenizer.ggml.merges": [f"a{i} b{i}" for i in range(num_tokens)],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}" * 5,
        "t.uint8": Typed("uint8", 200),
        "t.int8": Typed("int8", -5),
        "t.uint16": Typed("uint16", 65535),
        "t.int16": Typed("int16", -32768),
        "t.int32": -7,
        "t.uint64": 2**64 - 1,
        "t.int64": -(2**40),
        "t.float64": Typed("float64", 0.1),
        "t.bools": [True, False, True],
        "t.empty": [],
        "t.nested": [[1, 2], [3], ["x", "y"]],
    }


def tensors():
    """One tensor of every type that can be dequantized, with bytes of zeros and ones."""
    result = []
    for name, block in BLOCKS.items():
        data = np.ones((2, 2 * block.bytes), np.uint8)
        shape = (2, 2 * block.elements)
        result.append(NewTensor(f"blk.0.{name}.weight", name, shape, data))
    result.append(NewTensor("output_norm.weight", "f32", (8,), np.ones(8, np.float32)))
    return result


def gguf_bytes(keys=None, data=None):
    """A whole GGUF file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "sample.gguf")
        write_gguf(path, metadata() if keys is None else keys, tensors() if data is None else data)
        with open(path, "rb") as file:
            return file.read()


def check_message(error):
    """What the user sees is one line of sane length."""
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


def parse_gguf(raw):
    return read_gguf(io.BytesIO(raw), "sample", len(raw))


def safetensors_bytes(header=None, data_bytes=None):
    """A whole safetensors file; `header` may be anything that becomes JSON, or bytes."""
    if header is None:
        header = {
            "__metadata__": {"format": "pt"},
            "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
            "c.weight": {"dtype": "F16", "shape": [1, 2, 2], "data_offsets": [32, 40]},
            "scalar": {"dtype": "I64", "shape": [], "data_offsets": [40, 48]},
            "empty": {"dtype": "U8", "shape": [0, 4], "data_offsets": [48, 48]},
        }
        data_bytes = 48
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes or 0)


def parse_safetensors(raw):
    return read_safetensors(io.BytesIO(raw), "sample", len(raw))
