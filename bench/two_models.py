"""Two models at once on the same cores: ``python -m bench.two_models MODEL [MODEL]``.

Two `LLM`s of one process, each with as many threads as there are cores: first one, then the other
generates alone, then both at once. Printed for each is the share of its own speed alone that it
keeps; two that take turns without loss keep a half.

    python -m bench.two_models smollm2 -t 2
"""

from __future__ import annotations

import argparse
import statistics
import threading

from fastllm import LLM, SamplingParams


def speed(llm: LLM, first: int, tokens: int) -> float:
    """Tokens a second of an answer to a prompt of one token."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    (answer,) = llm.generate([[first]], params)
    return answer.timings.decode_tps


def together(llms: list[LLM], first: int, tokens: int) -> list[float]:
    """Tokens a second of each, all at once."""
    found = [0.0] * len(llms)

    def generate(number: int) -> None:
        found[number] = speed(llms[number], first + number, tokens)

    threads = [threading.Thread(target=generate, args=(n,)) for n in range(len(llms))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main() -> None:
    """Print a line a round, and medians."""
    parser = argparse.ArgumentParser(prog="bench.two_models", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("other", nargs="?", help="the second model; default: the first once more")
    parser.add_argument("-n", "--n-gen", type=int, default=300)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    args = parser.parse_args()
    n_ctx = args.n_gen + 16
    llms = [
        LLM(model, n_threads=args.threads, n_ctx=n_ctx)
        for model in (args.model, args.other or args.model)
    ]
    shares: list[list[float]] = []
    for number in range(args.rounds + 1):
        alone = [speed(llm, 10 + number, args.n_gen) for llm in llms]
        both = together(llms, 40 + 2 * number, args.n_gen)
        if number == 0:  # warms up
            continue
        shares.append([b / a for a, b in zip(alone, both, strict=True)])
        print(
            f"alone {alone[0]:.0f} and {alone[1]:.0f} tok/s, together {both[0]:.0f} and "
            f"{both[1]:.0f}: {shares[-1][0]:.2f} and {shares[-1][1]:.2f}"
        )
    every = [share for pair in shares for share in pair]
    print(f"median share {statistics.median(every):.2f} ({min(every):.2f}-{max(every):.2f})")
    for llm in llms:
        llm.close()


if __name__ == "__main__":
    main()
