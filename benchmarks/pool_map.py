# SPDX-License-Identifier: Apache-2.0
"""``map`` of many tiny items over two workers, beside ProcessPoolExecutor at its best chunk size.

    python -m benchmarks.pool_map [quick]

A sample is one whole map, in items a second. The chunk size of the other side is looked for first, among ``CHUNKS``;
then both make the same map, in turns; and the builtin ``map``, in this process, which no process beside it can be
expected to outrun by much. Every result is checked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from time import perf_counter

import atoll
from benchmarks.percentiles import summarize

ITEMS, WORKERS = 200_000, 2
CHUNKS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
ROUNDS, SEARCHES = 10, 2
QUICK_ROUNDS, QUICK_SEARCHES = 2, 1


def double(number: int) -> int:
    return 2 * number


def speed(make: Callable[[], Iterable[int]]) -> float:
    """Items a second of one map. Raises RuntimeError for a wrong result."""
    begin = perf_counter()
    results = list(make())
    seconds = perf_counter() - begin
    if results != [2 * number for number in range(ITEMS)]:
        raise RuntimeError("a wrong result")
    return ITEMS / seconds


def main() -> int:
    quick = "quick" in sys.argv
    items = range(ITEMS)
    executor = ProcessPoolExecutor(WORKERS)
    list(executor.map(double, range(100)))  # it forks, so first of all
    remote = atoll.function(workers=WORKERS)(double)
    remote.start()
    searched = {
        chunk: max(
            speed(lambda chunk=chunk: executor.map(double, items, chunksize=chunk))  # type: ignore[misc]
            for _ in range(QUICK_SEARCHES if quick else SEARCHES)
        )
        for chunk in CHUNKS
    }
    best = max(searched, key=lambda chunk: searched[chunk])
    taken: dict[str, list[float]] = {"atoll": [], "unordered": [], "process_pool": [], "local": []}
    speed(lambda: remote.map(items))
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        taken["atoll"].append(speed(lambda: remote.map(items)))
        taken["unordered"].append(speed(lambda: sorted(remote.map(items, ordered=False))))
        taken["process_pool"].append(speed(lambda: executor.map(double, items, chunksize=best)))
        taken["local"].append(speed(lambda: map(double, items)))
    remote.close()
    executor.shutdown()
    result = {name: asdict(summarize(samples)) for name, samples in taken.items()}
    print(json.dumps({**result, "chunk": best, "searched": searched}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
