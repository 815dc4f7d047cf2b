"""llama.cpp's tokenizer vectors: every vocabulary that has them, every string, exactly.

FASTLLM_VOCAB_VECTORS names the folder ``models`` of llama.cpp's source (its PyPI source package
llama-cpp-python has it under ``vendor/llama.cpp``).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastllm.formats.gguf import open_gguf
from fastllm.tokenizer import StreamDetokenizer, Tokenizer

NAMES = (
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2",
    "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip
SEPARATOR = "\n__ggml_vocab_test__\n"

pytestmark = pytest.mark.vectors


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary(name: str) -> None:
    path = Path(os.environ["FASTLLM_VOCAB_VECTORS"]) / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    lines = Path(f"{path}.out").read_text().splitlines()
    assert len(lines) >= 40
    assert texts[len(lines) :] in ([], [""])  # the file may end with a separator
    tokenizer = Tokenizer.from_gguf(open_gguf(path).metadata)
    wrong = []
    for text, line in zip(texts, lines, strict=False):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids != [int(word) for word in line.split()]:
            wrong.append((text, ids, line))
        if name != "bert-bge":  # which lowers case and drops accents
            stream = StreamDetokenizer(tokenizer)
            assert "".join(map(stream.put, ids)) + stream.finish() == tokenizer.decode(ids) == text
    assert not wrong
