# SPDX-License-Identifier: Apache-2.0
"""The interleaved comparison: rounds in which every contender makes one batch of calls, in shuffled order.

What always holds: all contenders are open at the same time and asleep while another is measured; a contender
that makes one error is left out altogether, with the error, and has no figure; samples of all rounds are
pooled.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Entry
from benchmarks.contender import Measured
from benchmarks.idleness import idle_loads
from benchmarks.percentiles import percentile, summarize
from benchmarks.starting import start

IDLE_SECONDS = 1.0


@dataclass(frozen=True)
class Effort:
    """How much is measured. ``batch_nanoseconds`` is what a batch should take; its calls stay within the
    bounds.
    """

    rounds: int = 60
    warm_up: int = 1000
    smallest_batch: int = 300
    largest_batch: int = 2000
    batch_nanoseconds: int = 40_000_000

    def batch(self, nanoseconds_per_call: float) -> int:
        """How many calls of this speed make a batch."""
        wanted = int(self.batch_nanoseconds / max(nanoseconds_per_call, 1.0))
        return min(max(wanted, self.smallest_batch), self.largest_batch)


QUICK = Effort(rounds=4, warm_up=100, smallest_batch=50, largest_batch=500, batch_nanoseconds=10_000_000)


@dataclass
class Comparison:
    """What came out: by name, figures in nanoseconds, or why there are none."""

    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def compare(
    entries: Sequence[Entry], python: Path, effort: Effort, progress: Callable[[str], None]
) -> Comparison:
    """Starts everyone, measures them in interleaved rounds, and closes everyone."""
    comparison = Comparison()
    running: dict[str, Measured] = {}
    try:
        for entry in entries:
            progress(f"starting {entry.name}")
            try:
                running[entry.name] = start(entry, python)
            except Exception as error:
                comparison.left_out[entry.name] = f"{type(error).__name__}: {error}"
                progress(f"  left out: {error}")
        _measure(entries, running, comparison, effort, progress)
    finally:
        for contender in running.values():
            contender.close()
    return comparison


def _measure(
    entries: Sequence[Entry],
    running: dict[str, Measured],
    comparison: Comparison,
    effort: Effort,
    progress: Callable[[str], None],
) -> None:
    rounds: dict[str, list[Sequence[int]]] = {name: [] for name in running}

    def run(name: str, count: int) -> Sequence[int] | None:
        try:
            return running[name].run(count)
        except Exception as error:
            comparison.left_out[name] = f"{type(error).__name__}: {error}"
            progress(f"  left out: {name}: {error}")
            running.pop(name).close()
            return None

    batches: dict[str, int] = {}
    for name in list(running):
        run(name, effort.warm_up)
        if name in running and (taken := run(name, effort.smallest_batch)) is not None:
            batches[name] = effort.batch(summarize(taken).p50)
    progress("checking that everyone sleeps while nobody calls")
    idle = idle_loads({name: contender.pid for name, contender in running.items()}, IDLE_SECONDS)
    for number in range(effort.rounds):
        progress(f"round {number + 1} of {effort.rounds}")
        for name in random.sample(list(running), len(running)):
            if (taken := run(name, batches[name])) is not None:
                rounds[name].append(taken)
    for entry in entries:
        if entry.name not in running:
            continue
        pooled = rounds[entry.name]
        round_p50s = sorted(summarize(one).p50 for one in pooled)
        comparison.measured[entry.name] = {
            "title": entry.title,
            "placement": entry.placement,
            "environment": dict(entry.environment),
            "description": running[entry.name].description,
            "batch": batches[entry.name],
            "rounds": len(pooled),
            "idle_load": round(idle[entry.name], 3),
            "nanoseconds": asdict(summarize(sample for one in pooled for sample in one)),
            "round_p50_nanoseconds": {str(p): percentile(round_p50s, p) for p in (0, 25, 50, 75, 100)},
        }
