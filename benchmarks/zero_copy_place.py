# SPDX-License-Identifier: Apache-2.0
"""Arrays that lie in a segment already, from 1 KB to 1 GB, beside a small call: no byte of them is copied.

    python -m benchmarks.zero_copy_place [quick]

A sample is one call, in nanoseconds. ``made``: an array of ``atoll.empty``, all of whose pages are there, as an
argument of ``look``, over and over. ``passed on``: the result of one worker, given to another. ``given back``: to the
one it came from. Memory: the largest array (an eighth of the machine's memory, if that is less than 1 GB), and little
beside it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import atoll
from benchmarks import array_service
from benchmarks.copying import marks
from benchmarks.percentiles import summarize
from benchmarks.turns import Contender, take_turns, timed
from benchmarks.workload import LABEL, THRESHOLD, check

SIZES = (1_000, 30_000, 1_000_000, 30_000_000, 1_000_000_000)
RETURNED_SIZES = (1_000_000, 30_000_000)
ROUNDS, QUICK_ROUNDS, BATCH = 60, 6, 30
SERVICE = Path(array_service.__file__)


def small_calls(detect: Callable[..., Any]) -> Contender:
    """The small call, as everywhere else."""

    def contend() -> list[int]:
        samples = []
        for image_id in range(BATCH):
            taken, reply = timed(lambda image_id=image_id: detect(image_id, threshold=THRESHOLD, label=LABEL))  # type: ignore[misc]
            check(image_id, reply)
            samples.append(taken)
        return samples

    return contend


def looks(look: Callable[[Any], Any], array: Any, is_writable: bool = True) -> Contender:
    """Calls with the very same array, whose last byte is another each time where that can be."""

    def contend() -> list[int]:
        samples = []
        for _ in range(BATCH):
            if is_writable:
                array[-1] = next(marks)
            expected = len(array), int(array[0]), int(array[-1])
            taken, answer = timed(lambda: look(array))
            if answer != expected:
                raise RuntimeError(f"{answer} instead of {expected}")
            samples.append(taken)
        return samples

    return contend


def measure(service: Any, other: Any, rounds: int) -> dict[str, list[int]]:
    """Samples of the small call, and by size."""
    largest = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8
    contenders = {"small": small_calls(service.detect)}
    for size in SIZES:
        array = atoll.empty(min(size, largest), "uint8")
        array.fill(7)
        contenders[f"made {len(array)}"] = looks(service.look, array)
    for size in RETURNED_SIZES:
        contenders[f"passed on {size}"] = looks(service.look, other.give(size, 5), False)
    contenders[f"given back {RETURNED_SIZES[-1]}"] = looks(service.look, service.give(RETURNED_SIZES[-1], 5), False)
    return take_turns(contenders, rounds)


def main() -> int:
    with atoll.Service(SERVICE) as service, atoll.Service(SERVICE, name="other") as other:
        taken = measure(service, other, QUICK_ROUNDS if "quick" in sys.argv else ROUNDS)
    atoll.shutdown()
    print(json.dumps({name: asdict(summarize(samples)) for name, samples in taken.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
