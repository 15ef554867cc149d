# SPDX-License-Identifier: Apache-2.0
"""The interleaved comparison: rounds in which every contender makes one batch of calls, in shuffled order.

What always holds: all contenders are open at the same time and asleep while another is measured; everyone is
started several times, since where the kernel happens to lay out a process's memory decides up to a factor of
two when both sides share a core; a contender that makes one error is left out altogether, with the error, and
has no figure; samples of all starts and rounds are pooled.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Entry
from benchmarks.contender import Measured
from benchmarks.idleness import idle_loads
from benchmarks.percentiles import summarize
from benchmarks.starting import start


@dataclass(frozen=True)
class Effort:
    """How much is measured. ``batch_nanoseconds`` is what a batch should take; its calls stay within the
    bounds.

    ``rounds`` is the number of all rounds; they are shared out evenly among the ``starts``.
    """

    rounds: int = 60
    starts: int = 6
    warm_up: int = 1000
    smallest_batch: int = 300
    largest_batch: int = 2000
    batch_nanoseconds: int = 40_000_000
    idle_seconds: float = 1.0

    def batch(self, nanoseconds_per_call: float) -> int:
        """How many calls of this speed make a batch."""
        wanted = int(self.batch_nanoseconds / max(nanoseconds_per_call, 1.0))
        return min(max(wanted, self.smallest_batch), self.largest_batch)

    def rounds_of_starts(self) -> list[int]:
        """How many rounds each start gets: never none, so there are at most as many starts as rounds."""
        starts = min(self.starts, self.rounds)
        return [self.rounds // starts + (number < self.rounds % starts) for number in range(starts)]


QUICK = Effort(rounds=4, starts=2, warm_up=100, smallest_batch=50, largest_batch=500, batch_nanoseconds=10_000_000)


@dataclass
class Comparison:
    """What came out: by name, figures in nanoseconds, or why there are none."""

    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def compare(entries: Sequence[Entry], python: Path, effort: Effort, progress: Callable[[str], None]) -> Comparison:
    """Starts everyone, measures them in interleaved rounds and closes everyone, as often as there are
    starts.
    """
    session = _Session(entries, python, effort, progress)
    for number, rounds in enumerate(effort.rounds_of_starts()):
        progress(f"start {number + 1} of {len(effort.rounds_of_starts())}")
        session.measure_one_start(rounds, check_idleness=number == 0)
    return session.outcome()


class _Session:
    """The samples so far, and who is running at the moment."""

    def __init__(self, entries: Sequence[Entry], python: Path, effort: Effort, progress: Callable[[str], None]) -> None:
        self._entries = entries
        self._python = python
        self._effort = effort
        self._progress = progress
        self._running: dict[str, Measured] = {}
        self._descriptions: dict[str, dict[str, Any]] = {}
        self._batches: dict[str, int] = {}
        self._idle: dict[str, float] = {}
        self._starts: dict[str, list[array[int]]] = {entry.name: [] for entry in entries}
        self._left_out: dict[str, str] = {}

    def measure_one_start(self, rounds: int, check_idleness: bool) -> None:
        """Opens everyone who has not failed, makes that many rounds, and closes everyone."""
        try:
            for entry in self._entries:
                self._open(entry)
            for name in list(self._running):
                self._warm_up(name)
            if check_idleness and self._effort.idle_seconds:
                self._progress("  checking that everyone sleeps while nobody calls")
                pids = {name: contender.pid for name, contender in self._running.items()}
                self._idle = idle_loads(pids, self._effort.idle_seconds)
            for name in self._running:
                self._starts[name].append(array("q"))
            for _ in range(rounds):
                for name in random.sample(list(self._running), len(self._running)):
                    self._starts[name][-1].extend(self._run(name, self._batches[name]))
        finally:
            for contender in self._running.values():
                contender.close()
            self._running.clear()

    def outcome(self) -> Comparison:
        """What the samples say."""
        comparison = Comparison(left_out=self._left_out)
        for entry in self._entries:
            if entry.name in self._left_out:
                continue
            starts = self._starts[entry.name]
            comparison.measured[entry.name] = {
                "title": entry.title,
                "placement": entry.placement,
                "environment": dict(entry.environment),
                "description": self._descriptions[entry.name],
                "batch": self._batches[entry.name],
                "idle_load": round(self._idle.get(entry.name, 0.0), 3),
                "nanoseconds": asdict(summarize(sample for one in starts for sample in one)),
                "p50_of_starts": [summarize(one).p50 for one in starts],
            }
        return comparison

    def _open(self, entry: Entry) -> None:
        if entry.name in self._left_out:
            return
        try:
            self._running[entry.name] = started = start(entry, self._python)
        except Exception as error:
            self._leave_out(entry.name, error)
        else:
            self._descriptions[entry.name] = started.description

    def _warm_up(self, name: str) -> None:
        self._run(name, self._effort.warm_up)
        taken = self._run(name, self._effort.smallest_batch)
        if taken and name not in self._batches:
            self._batches[name] = self._effort.batch(summarize(taken).p50)

    def _run(self, name: str, count: int) -> Sequence[int]:
        """A batch; nothing from a contender that failed, now or in this round."""
        if name not in self._running:
            return ()
        try:
            return self._running[name].run(count)
        except Exception as error:
            self._leave_out(name, error)
            self._running.pop(name).close()
            return ()

    def _leave_out(self, name: str, error: Exception) -> None:
        self._left_out[name] = f"{type(error).__name__}: {error}"
        self._progress(f"  left out: {name}: {error}")
