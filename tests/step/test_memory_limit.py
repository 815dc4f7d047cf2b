"""Under a real memory limit: refused in one line, or loaded with less; never killed."""

import re

import numpy as np
import pytest

from fastllm.formats.checkpoint import open_checkpoint
from fastllm.formats.gguf_writer import NewTensor, write_gguf
from fastllm.options import LoadOptions
from fastllm.step.runner import Runner
from tests.step.memory_cgroup import MemoryGroup

MB = 1_000_000


@pytest.fixture
def limited(python):
    """``limited(nbytes, *arguments)`` runs Python under a limit."""
    groups = []

    def run(nbytes, *arguments):
        try:
            groups.append(MemoryGroup(nbytes))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here: {error}")
        return python(*arguments, preexec_fn=groups[-1].enter)

    yield run
    for group in groups:
        group.close()


HIDDEN, CONTEXT = 64, 8192


def model(path, mlp, heads=2, head_dim=32):
    """A llama of one layer with zeros for weights."""
    hidden, width = HIDDEN, heads * head_dim

    def tensor(name, *shape):
        return NewTensor(f"{name}.weight", "f32", shape, np.zeros(shape, np.float32))

    tensors = [
        tensor("token_embd", 100, hidden),
        tensor("output_norm", hidden),
        tensor("blk.0.attn_norm", hidden),
        tensor("blk.0.ffn_norm", hidden),
        *(tensor(f"blk.0.attn_{name}", width, hidden) for name in "qkv"),
        tensor("blk.0.attn_output", hidden, width),
        tensor("blk.0.ffn_gate", mlp, hidden),
        tensor("blk.0.ffn_up", mlp, hidden),
        tensor("blk.0.ffn_down", hidden, mlp),
    ]
    metadata = {
        "general.architecture": "llama",
        "llama.vocab_size": 100,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": hidden,
        "llama.block_count": 1,
        "llama.feed_forward_length": mlp,
        "llama.attention.head_count": heads,
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    write_gguf(path, metadata, tensors)
    return path


def test_a_model_larger_than_its_limit_is_refused(limited, tmp_path):
    path = model(tmp_path / "large.gguf", mlp=300_000)
    done = limited(210 * MB, "-m", "fastllm", "bench", str(path), "-p", "4", "-n", "0", "-r", "1")
    assert done.returncode == 1, done.stderr  # 137: killed
    assert re.fullmatch(
        r"fastllm: the model needs \d+ MB \(231 MB weights \+ .*\) and \d+ MB are there: "
        r"no context fits; the least that would do is \d+ MB\n",
        done.stderr,
    ), done.stderr


def test_a_context_is_cut_to_its_limit(limited, tmp_path):
    """All that the shorter context takes is touched."""
    path = model(tmp_path / "long.gguf", mlp=64, heads=8, head_dim=512)
    Runner(open_checkpoint(path), LoadOptions(n_ctx=64)).close()  # the kernels are there
    code = f"""
from fastllm import LLM
with LLM({str(path)!r}, n_threads=1) as llm:
    assert 64 <= llm.n_ctx < llm.n_ctx_wanted == {CONTEXT}, llm.n_ctx
    llm.token_logprobs([1 + i % 50 for i in range(llm.n_ctx)])
    print(llm.n_ctx)
"""
    done = limited(400 * MB, code)
    assert done.returncode == 0, done.stderr
