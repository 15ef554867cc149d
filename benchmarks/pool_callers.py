# SPDX-License-Identifier: Apache-2.0
"""Single small calls of eight threads that share two workers: how long they take, and whether they are served alike.

    python -m benchmarks.pool_callers [quick]

A sample is one call, in nanoseconds, waiting for its turn included. In each round all callers call for the same time.
A caller's wait is the mean of its calls in the round; the fair share is what each would wait if all waited alike: the
round's time, shared out over the mean number of calls of a caller.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from time import perf_counter_ns

import atoll
from benchmarks.percentiles import summarize
from benchmarks.workload import LABEL, THRESHOLD, check

CALLERS, WORKERS = 8, 2
SECONDS, ROUNDS = 2.0, 10
QUICK_SECONDS, QUICK_ROUNDS = 0.5, 2


@atoll.function(workers=WORKERS)
def detect(image_id, *, threshold=0.5, label="cat"):
    return {"id": image_id, "label": label, "score": threshold}


def one_round(seconds: float) -> list[list[int]]:
    """The samples of each caller. Raises RuntimeError if one had an error."""
    taken: list[list[int]] = [[] for _ in range(CALLERS)]
    barrier = threading.Barrier(CALLERS)
    errors: list[Exception] = []

    def call(samples: list[int]) -> None:
        try:
            barrier.wait()
            end = perf_counter_ns() + int(seconds * 1e9)
            begin = perf_counter_ns()
            image_id = 0
            while begin < end:
                image_id += 1
                reply = detect(image_id, threshold=THRESHOLD, label=LABEL)
                now = perf_counter_ns()
                samples.append(now - begin)
                check(image_id, reply)
                begin = perf_counter_ns()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(samples,)) for samples in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return taken


def largest_share(taken: list[list[int]]) -> float:
    """The longest mean wait of a caller, over the fair share."""
    fair = sum(map(sum, taken)) / sum(map(len, taken))
    return max(sum(samples) / len(samples) for samples in taken) / fair


def main() -> int:
    quick = "quick" in sys.argv
    detect.start()
    one_round(0.2)
    pooled: list[int] = []
    shares = []
    calls = 0
    seconds = QUICK_SECONDS if quick else SECONDS
    rounds = QUICK_ROUNDS if quick else ROUNDS
    for _ in range(rounds):
        taken = one_round(seconds)
        pooled += [sample for samples in taken for sample in samples]
        shares.append(largest_share(taken))
        calls += sum(map(len, taken))
    detect.close()
    print(
        json.dumps(
            {
                "call": asdict(summarize(pooled)),
                "share": asdict(summarize(shares)),
                "calls_per_second": calls / seconds / rounds,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
