# ruff: noqa: T201 (a script that reports)
"""Fuzz the two parsers: ``python -m tests.formats.fuzz_parsers --seconds 60 [--seed N]``.

Sound files are made here, damaged at random, opened, and every tensor of what still opens is read
as float32. Only fastllm's own errors may come out, each of one line; no input may take longer than
a second, and the process may not grow by more than 512 MiB (a larger request fails at once). A
failing input is kept under its own name for a test to be made of it.
"""

import argparse
import collections
import os
import random
import resource
import sys
import tempfile
import time
import tracemalloc
import warnings

from fastllm.errors import FastLLMError
from fastllm.formats.checkpoint import Checkpoint, open_checkpoint
from tests.formats import samples
from tests.formats.mutations import mutate, mutate_json

MAX_SECONDS = 1.0
MAX_GROWTH = 512 << 20
# Python objects per byte of input: an empty inner array of 12 bytes makes an object of some 150.
MAX_BYTES_PER_BYTE, FLOOR_BYTES = 40, 4 << 20


def limit_memory():
    """Make any allocation fail that would grow the process beyond the bound."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_GROWTH, resource.RLIM_INFINITY))


def read_all(checkpoint):
    for name in checkpoint.tensors:
        try:
            checkpoint.read_float32(name)
        except FastLLMError as error:
            samples.check_message(error)


def run_one(kind, raw, path):
    """Open one input; return "opened" or the class name of the error of ours."""
    try:
        if path is None:
            (samples.parse_gguf if kind == "gguf" else samples.parse_safetensors)(raw)
            return "opened"
        with open(path, "wb") as file:
            file.write(raw)
        if kind == "gguf":
            read_all(open_checkpoint(path))
        else:
            parsed = samples.parse_safetensors(raw)
            tensors = {
                name: type(info)(name, info.type, info.shape, path, info.offset, info.nbytes)
                for name, info in parsed.tensors.items()
            }
            read_all(Checkpoint("hf", path, tensors, {}))
        return "opened"
    except FastLLMError as error:
        samples.check_message(error)
        return type(error).__name__


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    warnings.simplefilter("error")
    small = samples.gguf_bytes(samples.metadata(20))
    seeds = [
        ("gguf", small, len(small) - 7000),
        ("gguf", samples.gguf_bytes(samples.metadata(2000)), 60_000),
        ("safetensors", samples.safetensors_bytes(), 500),
    ]
    outcomes = collections.Counter()
    slowest, worst_memory, tried = 0.0, 0, 0
    if os.path.exists("/proc/self/statm"):
        limit_memory()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "input")
        while time.monotonic() - start < options.seconds:
            kind, raw, header_size = rng.choice(seeds)
            if kind == "safetensors" and rng.random() < 0.6:
                raw = mutate_json(raw, rng)
            if kind == "gguf" or rng.random() < 0.6:
                raw = mutate(raw, rng, header_size)
            tried += 1
            measured = tried % 20 == 0
            if measured:
                tracemalloc.start()
            began = time.perf_counter()
            try:
                # One in ten goes through a real file, and its tensors are read.
                outcome = run_one(kind, raw, path if tried % 10 == 5 else None)
            except BaseException:
                name = f"failing-{kind}-{seed}-{tried}.bin"
                with open(name, "wb") as file:
                    file.write(raw)
                print(f"input {tried} of seed {seed} failed; kept as {name}", file=sys.stderr)
                raise
            took = time.perf_counter() - began
            if measured:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                worst_memory = max(worst_memory, peak)
                assert peak <= FLOOR_BYTES + MAX_BYTES_PER_BYTE * len(raw), (peak, len(raw))
            else:
                slowest = max(slowest, took)
                assert took < MAX_SECONDS, f"input {tried} of seed {seed} took {took:.2f} s"
            outcomes[kind, outcome] += 1
    print(f"{tried} inputs in {options.seconds:g} s, seed {seed}, no failure")
    print(f"slowest {slowest * 1e3:.1f} ms, largest peak {worst_memory / 2**20:.1f} MiB")
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:12} {outcome:20} {count}")


if __name__ == "__main__":
    main()
