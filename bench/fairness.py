"""Short prompts and running answers beside a long prompt: ``python -m bench.fairness MODEL``.

Each round is a process of its own. In it the same things are timed alone and together, in turns:

* a prompt of five tokens, until its first token: alone, and at moments of a long prompt;
* the gaps between the tokens of a stream: alone, and while a long prompt arrives;
* seconds that the stream and the long prompt take together, the long prompt alone, and 8 and 32
  short requests at once: what fairness costs, seen beside another version;
* an answer read token by token, against the same one by `generate`.

No prompt begins as another one did, so each is computed from its first token.

    python -m bench.fairness smollm2 -t 2
    python -m bench.fairness smollm2 -t 2 --against before=/path/to/its/python

Versions are run in turn; medians over the rounds, a ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastllm import LLM, SamplingParams

PACKAGE = str(Path(__file__).parents[1])
OURS = "fastllm"
SHORT, LONG, STREAMED, READ = 5, 6000, 300, 96
MOMENTS = 24  # of a long prompt, at which a short one comes

# Less is better.
FIGURES = {
    "short_alone_ms": "first token of a short prompt alone, ms",
    "short_beside_ms": "the same beside a long one, median, ms",
    "short_times": "the same, times what it takes alone",
    "short_worst_times": "the slowest one, times what it takes alone",
    "gap_alone_ms": "gap between tokens of a stream alone, median, ms",
    "gap_p99_ms": "gaps while a long prompt arrives, slowest 1 %, ms",
    "gap_times": "the same, times the median alone",
    "together_s": "a stream and a long prompt together, s",
    "long_alone_s": "the long prompt alone, s",
    "eight_s": "8 short requests at once, s",
    "thirty_two_s": "32 short requests at once, s",
    "read_cost": "an answer read token by token, times generate",
}


def params(num_tokens: int) -> SamplingParams:
    """Greedy, and so many tokens."""
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


class Round:
    """One process's measurements of one model."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._starts = itertools.count(300)

    def prompt(self, num_tokens: int) -> list[int]:
        """Return a prompt that begins as no other did."""
        return [next(self._starts), *([7] * (num_tokens - 1))]

    def first_token_s(self) -> float:
        """Time a short prompt to its first token."""
        prompt = self.prompt(SHORT)
        begun = time.perf_counter()
        with self.llm.stream(prompt, params(4)) as stream:
            next(stream)
            seconds = time.perf_counter() - begun
            for _ in stream:  # to its end: a step of it would be in the next one's way
                pass
        return seconds

    def gaps_s(self, num_tokens: int) -> list[float]:
        """Time the gaps of a stream."""
        times = [time.perf_counter() for _ in self.llm.stream(self.prompt(3), params(num_tokens))]
        return [after - before for before, after in itertools.pairwise(times)]

    def seconds(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Time requests at once, from the first one's start to the last one's end."""
        begun = time.perf_counter()
        self.llm.generate(prompts, params(num_tokens))
        return time.perf_counter() - begun

    def shorts_beside(self, long_s: float) -> list[float]:
        """Time short prompts at moments of a long one, which takes `long_s` alone."""
        over = threading.Event()

        def long() -> None:
            self.llm.generate([self.prompt(LONG)], params(1))
            over.set()

        thread = threading.Thread(target=long)
        thread.start()
        found = []
        for number in range(MOMENTS):
            # between layers and chunks, not always at the same place
            if over.wait(long_s / MOMENTS * (0.5 + number * 0.37 % 1)):
                break
            found.append(self.first_token_s())
        thread.join()
        return found

    def stream_beside(self) -> tuple[list[float], float]:
        """Gaps of a stream while a long prompt arrives, and seconds until both are over."""
        gaps: list[float] = []
        thread = threading.Thread(target=lambda: gaps.extend(self.gaps_s(STREAMED)))
        begun = time.perf_counter()
        thread.start()
        time.sleep(0.2)
        self.llm.generate([self.prompt(LONG)], params(1))
        thread.join()
        return gaps, time.perf_counter() - begun

    def read_cost(self) -> float:
        """Time an answer read token by token against the same one by `generate`."""

        def read(prompt: list[int]) -> None:
            for _ in self.llm.stream(prompt, params(READ)):
                pass

        def whole(prompt: list[int]) -> None:
            self.llm.generate([prompt], params(READ))

        def ratio(number: int) -> float:
            if number % 2:  # whose turn is first does not matter then
                return self._time(read) / self._time(whole)
            whole_s = self._time(whole)
            return self._time(read) / whole_s

        return statistics.median(map(ratio, range(20)))

    def _time(self, run: Callable[[list[int]], None]) -> float:
        prompt = self.prompt(3)
        begun = time.perf_counter()
        run(prompt)
        return time.perf_counter() - begun

    def figures(self) -> dict[str, float]:
        """Measure everything."""
        self.seconds([self.prompt(600)], 20)  # warms up
        short_s = statistics.median(self.first_token_s() for _ in range(9))
        gap_s = statistics.median(self.gaps_s(100))
        long_s = self.seconds([self.prompt(LONG)], 1)
        shorts = self.shorts_beside(long_s)
        gaps, together_s = self.stream_beside()
        p99_s = sorted(gaps)[int(len(gaps) * 0.99)]
        return {
            "short_alone_ms": short_s * 1e3,
            "short_beside_ms": statistics.median(shorts) * 1e3,
            "short_times": statistics.median(shorts) / short_s,
            "short_worst_times": max(shorts) / short_s,
            "gap_alone_ms": gap_s * 1e3,
            "gap_p99_ms": p99_s * 1e3,
            "gap_times": p99_s / gap_s,
            "together_s": together_s,
            "long_alone_s": long_s,
            "eight_s": self.seconds([self.prompt(SHORT) for _ in range(8)], 32),
            "thirty_two_s": self.seconds([self.prompt(SHORT) for _ in range(32)], 32),
            "read_cost": self.read_cost(),
        }


def rounds(commands: dict[str, list[str]], number: int) -> Iterator[dict[str, dict[str, float]]]:
    """Run each version once a round."""
    for _ in range(number):
        found = {}
        for name, command in commands.items():
            path = {"PYTHONPATH": PACKAGE} if name == OURS else {}
            done = subprocess.run(
                command, env={**os.environ, **path}, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"{name}: {done.stderr.strip()}")
            found[name] = json.loads(done.stdout)
        yield found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench.fairness", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--once", action="store_true", help="one round in this process, as JSON")
    parser.add_argument("--against", metavar="NAME=PYTHON", help="the Python of another version")
    args = parser.parse_args()
    if args.once:
        with LLM(args.model, n_threads=args.threads, n_ctx=8192) as llm:
            print(json.dumps(Round(llm).figures()))
        return
    given = [__file__, args.model, "--once"]
    given += ["-t", str(args.threads)] if args.threads else []
    commands = {OURS: [sys.executable, *given]}
    if args.against:
        name, _, python = args.against.rpartition("=")
        commands[name or "other"] = [python, "-P", *given]
    found = list(rounds(commands, args.rounds))
    print(f"| | {' | '.join(commands)} |" + (" ratio |" if args.against else ""))
    print("|---" * (len(commands) + 1 + bool(args.against)) + "|")
    for key, what in FIGURES.items():
        columns = [statistics.median(one[name][key] for one in found) for name in commands]
        cells = [f"{value:.3g}" for value in columns]
        if args.against:
            ours, other = commands
            cells.append(f"{statistics.median(o[other][key] / o[ours][key] for o in found):.3f}")
        print(f"| {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
