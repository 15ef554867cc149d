# SPDX-License-Identifier: Apache-2.0
"""Streams of many small items: out of a generator in the worker, and into a worker from an iterator here.

    python -m benchmarks.pool_stream [quick]

A sample is one whole stream, in items a second. Memory is what each process alone has; its growth is from the end of
the first stream, when what is kept for good is there, to the end of the last one.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from time import perf_counter

import atoll
from benchmarks.memory import private_bytes
from benchmarks.percentiles import summarize

ITEMS = 100_000
ROUNDS, QUICK_ROUNDS = 20, 3


@atoll.function
def count(items):
    yield from range(items)


@atoll.function
def total(numbers):
    return sum(numbers)


def out_of_the_worker() -> float:
    begin = perf_counter()
    item = -1
    for number, item in enumerate(count(ITEMS)):
        if item != number:
            raise RuntimeError(f"{item} came instead of {number}")
    if item != ITEMS - 1:
        raise RuntimeError(f"{item} was the last one")
    return ITEMS / (perf_counter() - begin)


def into_the_worker() -> float:
    begin = perf_counter()
    if total(iter(range(ITEMS))) != ITEMS * (ITEMS - 1) // 2:
        raise RuntimeError("a wrong total")
    return ITEMS / (perf_counter() - begin)


def main() -> int:
    rounds = QUICK_ROUNDS if "quick" in sys.argv else ROUNDS
    taken: dict[str, list[float]] = {"out": [], "into": []}
    out_of_the_worker()
    into_the_worker()
    processes = {"host": os.getpid(), "worker_out": count.pid or 0, "worker_into": total.pid or 0}
    before = {name: private_bytes(pid) for name, pid in processes.items()}
    for _ in range(rounds):
        taken["out"].append(out_of_the_worker())
        taken["into"].append(into_the_worker())
    growth = {name: private_bytes(pid) - before[name] for name, pid in processes.items()}
    count.close()
    total.close()
    print(json.dumps({**{name: asdict(summarize(samples)) for name, samples in taken.items()}, "growth": growth}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
