# SPDX-License-Identifier: Apache-2.0
"""From which size on bytes should go beside the payload: every size both ways, in the payload and beside it.

    python -m benchmarks.zero_copy_threshold [quick]

A sample is one call, in nanoseconds: an array or ``bytes`` as an argument, or as a result. The threshold is set on both
sides before each batch, to above the size or to below it; the two ways of one size take turns. Below 64 KiB, ``bytes``
are always in the payload, so there the two ways are one. Printed are the samples by kind, way and size, and the
thresholds that atoll has by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import atoll
from atoll_worker import values
from benchmarks import array_service
from benchmarks.copying import marks, random_bytes
from benchmarks.percentiles import summarize
from benchmarks.turns import Contender, take_turns, timed

SIZES = (1 << 10, 1 << 12, 1 << 14, 1 << 15, 48_000, 60_000, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20)
BATCH, ROUNDS, QUICK_ROUNDS = 30, 10, 2
INLINE, BESIDE = 1 << 30, 1
SERVICE = Path(array_service.__file__)


def passing(service: atoll.Service, size: int, as_bytes: bool) -> Callable[[], int]:
    """One call with an argument of this size. Returns what it took."""
    array = random_bytes(size)

    def call() -> int:
        array[-1] = mark = next(marks)
        data = array.tobytes() if as_bytes else array
        taken, answer = timed(lambda: service.look(data))
        if answer != (size, 7, mark):
            raise RuntimeError(f"{answer} instead of {(size, 7, mark)}")
        return taken

    return call


def getting(give: Callable[[int, int], Any], size: int) -> Callable[[], int]:
    """One call with a result of this size."""

    def call() -> int:
        mark = next(marks)
        taken, data = timed(lambda: give(size, mark))
        if (len(data), data[-1]) != (size, mark):
            raise RuntimeError(f"{len(data)} bytes instead of {size}")
        return taken

    return call


def with_threshold(service: atoll.Service, threshold: int, call: Callable[[], int]) -> Contender:
    """A batch of calls under a threshold. The first does not count: it comes after another one's batch."""

    def contend() -> list[int]:
        array_service.set_inline(threshold)
        service.set_inline(threshold)
        call()
        return [call() for _ in range(BATCH)]

    return contend


def main() -> int:
    rounds = QUICK_ROUNDS if "quick" in sys.argv else ROUNDS
    thresholds = {"array": values.Encoder.inline, "bytes": values._LARGE_CHUNK}
    results: dict[str, dict[str, dict[int, Any]]] = {}
    with atoll.Service(SERVICE) as service:
        kinds: dict[str, Callable[[int], Callable[[], int]]] = {
            "array argument": lambda size: passing(service, size, False),
            "array result": lambda size: getting(service.give, size),
            "bytes argument": lambda size: passing(service, size, True),
            "bytes result": lambda size: getting(service.give_bytes, size),
        }
        for kind, make in kinds.items():
            results[kind] = {"inline": {}, "beside": {}}
            for size in SIZES:
                call = make(size)
                ways = {"inline": INLINE, "beside": BESIDE}
                taken = take_turns({way: with_threshold(service, ways[way], call) for way in ways}, rounds)
                for way, samples in taken.items():
                    results[kind][way][size] = asdict(summarize(samples))
    atoll.shutdown()
    print(json.dumps({"thresholds": thresholds, "kinds": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
