# SPDX-License-Identifier: Apache-2.0
"""A five-second comparison for whoever works on the call's path: atoll's variants beside the C floor, in one run.

    python -m benchmarks.smallcall [--rounds 9] [--starts 3] [--only atoll,floor,...] [--python PATH]

Runs under the interpreter that runs it (atoll must be importable there) and needs no peer installed. A contender that
cannot start is named with its error; the others are measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.catalogue import CATALOGUE
from benchmarks.comparison import Comparison, Effort, compare

DEFAULT = (
    "floor,floor-scheduler,floor-two-cores,atoll,atoll-two-cores,atoll-one-core,atoll-async,atoll-lane-off,"
    "atoll-lane-off-one-core,pipe,pipe-one-core"
)


def show(comparison: Comparison) -> None:
    """Prints one line a contender, in microseconds, with the p50 of its fastest and slowest start."""
    for name, why in comparison.left_out.items():
        print(f"{name:24} left out: {why}")
    floor = comparison.measured.get("floor", {}).get("nanoseconds", {}).get("p50")
    print(f"{'':24} {'p50 µs':>8} {'p99 µs':>8} {'min µs':>8} {'x floor':>8} {'p50 of starts':>17} {'calls':>8}")
    for name, one in comparison.measured.items():
        taken, starts = one["nanoseconds"], one["p50_of_starts"]
        microseconds = " ".join(f"{taken[key] / 1e3:8.2f}" for key in ("p50", "p99", "minimum"))
        ratio = f"{taken['p50'] / floor:8.2f}" if floor else f"{'':8}"
        spread = f"{min(starts) / 1e3:.2f} to {max(starts) / 1e3:.2f}"
        print(f"{name:24} {microseconds} {ratio} {spread:>17} {taken['count']:8}")


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smallcall", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="batches of each contender (default 9)")
    parser.add_argument("--starts", type=int, default=3, help="start everyone so often (default 3; see README.md)")
    parser.add_argument("--only", default=DEFAULT, help=f"names, comma-separated, of: {', '.join(CATALOGUE)}")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter of the contenders")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    effort = Effort(rounds=options.rounds, starts=options.starts, idle_seconds=0.0)
    show(compare([CATALOGUE[name] for name in names], options.python, effort, progress=lambda message: None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
