"""Ours against other engines, alternately in one run: medians, spreads and ratios.

::

    python bench/compare.py MODEL --peer /path/to/llama-bench [--peer NAME=PATH ...]
        [--peer before=/path/to/fastllm] [--peer llama-cpp-python]
        [-p 512] [-n 128] [-t 2] [--rounds 5] [-o md|json]

Every round runs every engine once, as a process of its own that loads the model, warms up and
measures; the order rotates from round to round. A ratio is taken within a round, because on a
shared machine figures of different minutes cannot be compared. ``-r`` is passed on to each engine.

Ours samples greedily while it generates; llama-bench feeds random tokens and does not sample.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYTHON_PEER = "llama-cpp-python"
OURS = "fastllm"
Rates = dict[str, float]  # "pp512" -> tokens per second


@dataclass(frozen=True)
class Engine:
    """How to run one engine, and how to read its tokens per second."""

    name: str
    command: list[str]
    read: Callable[[Any], Rates]

    def run(self) -> Rates:
        """Run once; leave the program with the engine's own words if it fails."""
        done = subprocess.run(self.command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            words = " | ".join(done.stderr.strip().splitlines()[-3:])
            sys.exit(f"{self.name} failed with code {done.returncode}: {words}")
        try:
            return self.read(json.loads(done.stdout))
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"{self.name} printed something else than expected: {error!r}")


def read_ours(report: Any) -> Rates:
    """Read ``fastllm bench -o json``."""
    return {test["name"]: float(test["tps_median"]) for test in report["tests"]}


def read_llama_bench(report: Any) -> Rates:
    """Read ``llama-bench -o json``: one entry a test."""
    rates = {}
    for test in report:
        name = f"pp{test['n_prompt']}" if test["n_prompt"] else f"tg{test['n_gen']}"
        rates[name] = statistics.median(test.get("samples_ts") or [test["avg_ts"]])
    return rates


def engines(options: argparse.Namespace) -> list[Engine]:
    """Return ours and every peer."""
    file = model_file(options.model)
    flags = ["-p", options.n_prompt, "-n", options.n_gen]
    flags += ["-t", str(options.threads), "-r", str(options.repetitions)]
    ours = [sys.executable, "-m", "fastllm", "bench", file, *flags, "-o", "json"]
    found = [Engine(OURS, ours, read_ours)]
    for peer in options.peer:
        if peer == PYTHON_PEER:
            script = str(Path(__file__).with_name("peer_llama_cpp_python.py"))
            found.append(Engine(peer, [sys.executable, script, file, *flags], read_ours))
            continue
        name, _, path = peer.rpartition("=")
        if not Path(path).is_file():
            sys.exit(f"--peer {peer}: no such file; give the path of a llama-bench or a fastllm")
        if Path(path).name == OURS:  # another version of ours
            command, read = [path, "bench", file, *flags, "-o", "json"], read_ours
        else:
            command, read = [path, "-m", file, *flags, "-o", "json"], read_llama_bench
        found.append(Engine(name or path, command, read))
    return found


def model_file(model: str) -> str:
    """Return the path of a model: peers know no names."""
    if Path(model).exists():
        return model
    done = subprocess.run(
        [sys.executable, "-m", "fastllm", "pull", model], capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(done.stderr.strip())
    return done.stdout.strip().splitlines()[-1]


def alternate(all_engines: list[Engine], rounds: int) -> list[dict[str, Rates]]:
    """Return {engine: {test: tokens per second}} of every round."""
    results = []
    for number in range(rounds):
        first = number % len(all_engines)
        result: dict[str, Rates] = {}
        for engine in all_engines[first:] + all_engines[:first]:
            result[engine.name] = engine.run()
            shown = ", ".join(f"{test} {rate:.1f}" for test, rate in result[engine.name].items())
            print(f"round {number + 1}/{rounds}  {engine.name}: {shown}", file=sys.stderr)
        results.append(result)
    return results


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(results: list[dict[str, Rates]], peers: list[str]) -> list[dict[str, Any]]:
    """Return for every test ours, each peer, and the ratio ours / peer of each round."""
    tests = []
    for test in results[0][OURS]:
        ours = [result[OURS][test] for result in results]
        entry: dict[str, Any] = {"name": test, OURS: spread(ours), "peers": {}}
        for peer in peers:
            theirs = [result[peer][test] for result in results if test in result[peer]]
            if len(theirs) == len(ours):
                ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
                entry["peers"][peer] = {**spread(theirs), "ratio": spread(ratios)}
        tests.append(entry)
    return tests


def table(tests: list[dict[str, Any]], peers: list[str]) -> str:
    """Return a markdown table: tokens per second as median (least-largest), and the ratios."""
    head = ["test", f"{OURS} tok/s"]
    for peer in peers:
        head += [f"{peer} tok/s", "ratio"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for test in tests:
        row = [test["name"], _shown(test[OURS], ".1f")]
        for peer in peers:
            found = test["peers"].get(peer)
            row += [_shown(found, ".1f"), _shown(found["ratio"], ".2f")] if found else ["-", "-"]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"


def processor() -> str:
    """Return the CPU's name."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Compare fastllm with other engines, alternately in one run."
    )
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, or a name fastllm can pull")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help=f"a llama-bench binary, the {OURS} command of another environment, or {PYTHON_PEER}; "
        "may be given several times",
    )
    parser.add_argument("-p", "--n-prompt", default="512", help="tokens, with commas between")
    parser.add_argument("-n", "--n-gen", default="128", help="tokens, with commas between")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=1, help="of an engine in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", choices=["md", "json"], default="md")
    options = parser.parse_args(arguments)
    if min(options.threads, options.repetitions, options.rounds) < 1:
        parser.error("-t, -r and --rounds are whole numbers from 1 up")
    return options


def main() -> None:
    """Compare and print."""
    options = parse()
    all_engines = engines(options)
    peers = [engine.name for engine in all_engines[1:]]
    if len({OURS, *peers}) != len(all_engines):
        sys.exit("two engines have the same name: use --peer NAME=PATH")
    tests = summary(alternate(all_engines, options.rounds), peers)
    if options.output == "json":
        report = {
            "model": Path(options.model).name,
            "threads": options.threads,
            "rounds": options.rounds,
            "repetitions": options.repetitions,
            "processor": processor(),
            "date": time.strftime("%Y-%m-%d"),
            "tests": tests,
        }
        print(json.dumps(report, indent=2))
        return
    print(table(tests, peers))
    print(
        f"\n{Path(options.model).name}, {options.threads} threads, {processor()}; "
        f"median (min-max) of {options.rounds} rounds, engines alternating; "
        "ratio: fastllm / peer within a round"
    )


if __name__ == "__main__":
    main()
