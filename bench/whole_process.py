"""A whole ``fastllm run``, as a user waits for it: ``python -m bench.whole_process MODEL``.

Seconds from the start of the process to its end, and the most memory it had at once, less the
weights: what Python, its libraries and our buffers take. Kernels and the file are in their caches,
since the first round is not counted. The cache of keys and values is counted with the process; a
prompt of one word touches one block of it.

    python -m bench.whole_process smollm2
    python -m bench.whole_process smollm2 --against before=/path/to/fastllm

Commands are run in turn; a ratio is taken within a round (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import fastllm

PACKAGE = str(Path(fastllm.__file__).parents[1])
OURS = "fastllm"


def run(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Run a command to its end: (seconds, peak RSS in bytes)."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: code {process.returncode}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def weights_bytes(command: list[str], model: str, environment: dict[str, str]) -> int:
    """Ask ``fastllm info`` for the bytes of the packed weights."""
    done = subprocess.run(
        [*command, "info", model, "--json"], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr.strip())
    found = json.loads(done.stdout)
    needed = found.get("memory_needed", {})
    return int(needed.get("weights") or found["model_bytes"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench.whole_process", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-n", "--n-gen", default="1", help="tokens of the answer")
    parser.add_argument("-r", "--rounds", type=int, default=7)
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the fastllm command of another environment; may be given several times",
    )
    args = parser.parse_args()
    here = {**os.environ, "PYTHONPATH": PACKAGE}
    commands = {OURS: ([sys.executable, "-m", "fastllm"], here)}
    for other in args.against:
        name, _, path = other.rpartition("=")
        commands[name or path] = ([path], dict(os.environ))
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    for number in range(args.rounds + 1):
        for name, (command, environment) in commands.items():
            measured = run([*command, "run", args.model, "-n", args.n_gen, "hi"], environment)
            if number:
                found[name].append(measured)
    print("| command | seconds | peak RSS | without the weights | times ours |")
    print("|---|---|---|---|---|")
    for name, rounds in found.items():
        seconds = [s for s, _ in rounds]
        peak = max(rss for _, rss in rounds)
        rest = peak - weights_bytes(*commands[name][:1], args.model, commands[name][1])
        ratio = statistics.median(s / o for s, (o, _) in zip(seconds, found[OURS], strict=True))
        print(
            f"| {name} | {statistics.median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f}) "
            f"| {peak / 1e6:.0f} MB | {rest / 1e6:.0f} MB | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
