"""Where the time of a step goes, op by op: ``python -m bench.profile_step MODEL``.

Counts ticks of thread 0 in each op of the table (``Context.PROFILE``): its own work, and waiting
for the others at the barrier behind it. Ops that are called alike in all layers are one row; a
product is called like the role of its weight. Counting costs two reads of the clock an op.

    python -m bench.profile_step smollm2              # generation, at an empty context
    python -m bench.profile_step smollm2 -d 4096      # generation behind 4,096 tokens
    python -m bench.profile_step smollm2 -p 512       # a prompt
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fastllm.kernels.words import Context
from fastllm.loading import open_model
from fastllm.options import LoadOptions
from fastllm.step.batch import Batch
from fastllm.step.runner import Runner


class Profile:
    """Ticks of a runner's ops, gathered while ``with`` it.

    Parameters
    ----------
    runner : Runner
        Whatever it runs inside the block is counted.

    Attributes
    ----------
    ticks : int64[num_ops, 2]
        Of work and of waiting.
    seconds, native_s : float
        Inside the block, and of these in the table of ops, where all ticks lie.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.labels = runner._program.labels
        self.ticks: NDArray[np.int64] = np.zeros((len(self.labels), 2), np.int64)
        self.seconds = self.native_s = 0.0
        self._run = runner._run
        runner._run = self._timed  # type: ignore[method-assign]

    def _timed(self, first: int, end: int) -> None:
        started = time.perf_counter()
        self._run(first, end)
        self.native_s += time.perf_counter() - started

    def __enter__(self) -> Profile:
        self._runner._context[Context.PROFILE] = self.ticks.ctypes.data
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started
        self._runner._context[Context.PROFILE] = 0

    def rows(self) -> Iterable[tuple[str, int, int, int]]:
        """(name, ops of a step, ticks of work, ticks of waiting), in the order of the table."""
        found: dict[str, list[int]] = {}
        for label, (work, wait) in zip(self.labels, self.ticks.tolist(), strict=True):
            row = found.setdefault(re.sub(r"layers?\.\d+\.", "", label), [0, 0, 0])
            row[0] += 1
            row[1] += work
            row[2] += wait
        for name, (count, work, wait) in found.items():
            yield name, count, work, wait


def forward(runner: Runner, start: int, count: int, rng: np.random.Generator) -> None:
    """Run `count` random tokens at positions from `start` on; logits of the last one."""
    blocks = -(-(start + count) // runner.block_size)
    runner.forward(
        Batch(
            token_ids=rng.integers(0, runner.vocab_size, count).astype(np.int32),
            positions=np.arange(start, start + count, dtype=np.int32),
            seq_starts=np.array([0, count], np.int32),
            block_tables=np.arange(blocks, dtype=np.int32)[None],
            logit_rows=np.array([count - 1], np.int32),
        )
    )


def prompt(runner: Runner, start: int, count: int, rng: np.random.Generator) -> None:
    """Run a prompt in the runner's largest batches."""
    for at in range(start, start + count, runner.max_batch_tokens):
        forward(runner, at, min(runner.max_batch_tokens, start + count - at), rng)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench.profile_step", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-p", "--n-prompt", type=int, default=0, help="profile a prompt")
    parser.add_argument("-n", "--n-gen", type=int, default=128, help="or so many single tokens")
    parser.add_argument("-d", "--depth", type=int, default=0, help="behind so many tokens")
    parser.add_argument("-t", "--threads", type=int, default=None)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    args = parser.parse_args()
    tokens = args.n_prompt or args.n_gen
    runner = Runner(
        open_model(args.model),
        LoadOptions(n_ctx=args.depth + tokens, n_threads=args.threads),
    )
    rng = np.random.default_rng(1)
    profile = Profile(runner)
    prompt(runner, 0, args.depth, rng)
    for repetition in range(args.repetitions + 1):  # the first one warms up
        if repetition == 1:
            profile.ticks[:] = 0
            profile.seconds = profile.native_s = 0.0
        with profile:
            if args.n_prompt:
                prompt(runner, args.depth, tokens, rng)
            else:
                for i in range(tokens):
                    forward(runner, args.depth + i, 1, rng)
    done = tokens * args.repetitions
    total = int(profile.ticks.sum())
    microseconds = profile.native_s / total / done * 1e6  # a tick, for each token
    print(
        f"{args.model}, road {runner.isa}: {profile.seconds / done * 1e6:.1f} us a token, "
        f"{profile.native_s / done * 1e6:.1f} of them in the table"
    )
    print(f"| {'op':24} | ops | us a token | of which waiting | share |")
    print("|---|---|---|---|---|")
    for name, count, work, wait in profile.rows():
        share = (work + wait) / total
        both = (work + wait) * microseconds
        print(f"| {name:24} | {count} | {both:.1f} | {wait * microseconds:.1f} | {share:.1%} |")
    runner.close()


if __name__ == "__main__":
    main()
