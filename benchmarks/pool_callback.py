# SPDX-License-Identifier: Apache-2.0
"""A callback: the worker, in the middle of a call, calls a function of the caller's and waits for what it returns.

    python -m benchmarks.pool_callback [quick]

A sample is one callback, in nanoseconds, by the worker's clock. Beside it, from the same run, the small call.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from time import perf_counter_ns

import atoll
from benchmarks.percentiles import summarize
from benchmarks.pool_call import batch, detect

ROUNDS, CALLBACKS = 60, 1000
QUICK_ROUNDS = 5


@atoll.function
def ask(function, times):
    from time import perf_counter_ns

    taken = []
    for number in range(times):
        begin = perf_counter_ns()
        answer = function(number)
        taken.append(perf_counter_ns() - begin)
        if answer != number + 1:
            raise RuntimeError(f"{number} was answered with {answer}")
    return taken


def main() -> int:
    taken: dict[str, list[int]] = {"callback": [], "call": []}
    ask(lambda number: number + 1, CALLBACKS)
    batch(detect, [])
    begin = perf_counter_ns()
    for _ in range(QUICK_ROUNDS if "quick" in sys.argv else ROUNDS):
        taken["callback"] += ask(lambda number: number + 1, CALLBACKS)
        batch(detect, taken["call"])
    seconds = (perf_counter_ns() - begin) / 1e9
    ask.close()
    detect.close()
    print(json.dumps({**{name: asdict(summarize(samples)) for name, samples in taken.items()}, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
