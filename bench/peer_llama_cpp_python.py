"""llama-cpp-python measured as ``fastllm bench`` measures: run by compare.py, prints its JSON.

Its low-level calls are used, as llama-bench does it: no Python between two tokens but one call.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import sys
import time
from typing import Any

BATCH = 512


class Peer:
    """A model loaded by llama-cpp-python."""

    def __init__(self, path: str, n_ctx: int, n_threads: int) -> None:
        try:
            import llama_cpp
        except ImportError:
            sys.exit("llama-cpp-python is not installed: pip install llama-cpp-python")
        self.lib: Any = llama_cpp
        silent = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        self._keep = silent  # the library holds its address
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            sys.exit(f"llama-cpp-python cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, BATCH, BATCH
        params.n_threads = params.n_threads_batch = n_threads
        self.context = llama_cpp.llama_init_from_model(model, params)
        vocab = llama_cpp.llama_model_get_vocab(model)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(vocab))

    def reset(self) -> None:
        """Forget the KV cache."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def decode(self, token_ids: list[int]) -> None:
        """Compute tokens that follow those before."""
        for start in range(0, len(token_ids), BATCH):
            part = token_ids[start : start + BATCH]
            array = (self.lib.llama_token * len(part))(*part)
            if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(part))):
                sys.exit("llama_decode failed")
        self.lib.llama_synchronize(self.context)


def measure(peer: Peer, kind: str, tokens: int, repetitions: int) -> list[float]:
    """Return the tokens per second of every counted run; one comes before and is not counted."""
    rng = random.Random(0)
    rates = []
    for _ in range(repetitions + 1):
        peer.reset()
        token_ids = [rng.randrange(peer.vocab_size) for _ in range(tokens)]
        begin = time.perf_counter()
        if kind == "pp":
            peer.decode(token_ids)
        else:
            for token_id in token_ids:
                peer.decode([token_id])
        rates.append(tokens / (time.perf_counter() - begin))
    return rates[1:]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for flag in ("-p", "-n", "-t", "-r"):
        parser.add_argument(flag, required=True)
    options = parser.parse_args()
    wanted = [("pp", int(n)) for n in options.p.split(",") if int(n)]
    wanted += [("tg", int(n)) for n in options.n.split(",") if int(n)]
    peer = Peer(options.model, max(n for _, n in wanted) + 1, int(options.t))
    tests = []
    for kind, tokens in wanted:
        rates = measure(peer, kind, tokens, int(options.r))
        tests.append({"name": f"{kind}{tokens}", "tps_median": statistics.median(rates)})
    print(json.dumps({"tests": tests}))


if __name__ == "__main__":
    main()
