# SPDX-License-Identifier: Apache-2.0
"""A five-second comparison for whoever works on the call's path: atoll's variants beside the C floor, in one
run.

    python -m benchmarks.smallcall [--seconds 5] [--only atoll,floor,...] [--python PATH]

Runs under the interpreter that runs it (atoll must be importable there) and needs no peer installed. A
contender that cannot start is named with its error; the others are measured.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from benchmarks.catalogue import CATALOGUE
from benchmarks.contender import Measured
from benchmarks.percentiles import summarize
from benchmarks.starting import start

DEFAULT = (
    "floor,floor-scheduler,floor-two-cores,atoll,atoll-two-cores,atoll-one-core,atoll-async,atoll-lane-off,"
    "atoll-lane-off-one-core,pipe,pipe-one-core"
)
BATCH = 500
WARM_UP = 1000


def measure(running: dict[str, Measured], seconds: float, samples: dict[str, list[int]]) -> None:
    """Rounds of one batch each, in shuffled order, until the time is over. Adds nanoseconds by name."""
    order = list(running)
    for contender in running.values():
        contender.run(WARM_UP)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        random.shuffle(order)
        for name in order:
            samples.setdefault(name, []).extend(running[name].run(BATCH))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smallcall", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure (default 5)")
    parser.add_argument("--starts", type=int, default=3, help="start everyone so often (default 3; see README.md)")
    parser.add_argument("--only", default=DEFAULT, help=f"names, comma-separated, of: {', '.join(CATALOGUE)}")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter of the contenders")
    options = parser.parse_args()
    samples: dict[str, list[int]] = {}
    left_out: set[str] = set()
    for _ in range(options.starts):
        running: dict[str, Measured] = {}
        try:
            for name in options.only.split(","):
                if name in left_out:
                    continue
                try:
                    running[name] = start(CATALOGUE[name], options.python)
                except Exception as error:
                    left_out.add(name)
                    print(f"{name:26} left out: {type(error).__name__}: {error}")
            measure(running, options.seconds / options.starts, samples)
        finally:
            for contender in running.values():
                contender.close()
    floor = summarize(samples["floor"]).p50 if "floor" in samples else None
    print(f"{'':26} {'p50 µs':>8} {'p99 µs':>8} {'min µs':>8} {'x floor':>8} {'calls':>8}")
    for name in options.only.split(","):
        if name not in samples:
            continue
        taken = samples[name]
        summary = summarize(taken)
        ratio = f"{summary.p50 / floor:8.2f}" if floor else f"{'':8}"
        microseconds = " ".join(f"{value / 1e3:8.2f}" for value in (summary.p50, summary.p99, summary.minimum))
        print(f"{name:26} {microseconds} {ratio} {summary.count:8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
