# SPDX-License-Identifier: Apache-2.0
"""An array of 1 KB as an argument, and as a result, beside the small call.

    python -m benchmarks.zero_copy_small [quick]

A sample is one call, in nanoseconds, all with the same worker, in batches that take turns. For comparison also 1 KB of
``bytes``, which needs no numpy on either side.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import atoll
from benchmarks import array_service
from benchmarks.copying import marks, random_bytes
from benchmarks.percentiles import summarize
from benchmarks.turns import Contender, take_turns, timed
from benchmarks.zero_copy_place import small_calls

NBYTES, BATCH = 1_000, 100
ROUNDS, QUICK_ROUNDS = 200, 10
SERVICE = Path(array_service.__file__)


def looks(service: atoll.Service, as_bytes: bool) -> Contender:
    array = random_bytes(NBYTES)

    def contend() -> list[int]:
        samples = []
        for _ in range(BATCH):
            array[-1] = mark = next(marks)
            data = array.tobytes() if as_bytes else array
            taken, answer = timed(lambda data=data: service.look(data))  # type: ignore[misc]
            if answer != (NBYTES, 7, mark):
                raise RuntimeError(f"{answer} instead of {(NBYTES, 7, mark)}")
            samples.append(taken)
        return samples

    return contend


def gifts(service: atoll.Service) -> Contender:
    def contend() -> list[int]:
        samples = []
        for _ in range(BATCH):
            mark = next(marks)
            taken, array = timed(lambda mark=mark: service.give(NBYTES, mark))  # type: ignore[misc]
            if (len(array), array[-1]) != (NBYTES, mark):
                raise RuntimeError(f"{array[-1]} at the end instead of {mark}")
            samples.append(taken)
        return samples

    return contend


def main() -> int:
    with atoll.Service(SERVICE) as service:
        contenders = {
            "small": small_calls(service.detect),
            "argument": looks(service, False),
            "bytes": looks(service, True),
            "result": gifts(service),
        }
        taken = take_turns(contenders, QUICK_ROUNDS if "quick" in sys.argv else ROUNDS)
    atoll.shutdown()
    print(json.dumps({name: asdict(summarize(samples)) for name, samples in taken.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
