# SPDX-License-Identifier: Apache-2.0
"""What a pool counts: how long calls take, by function and outcome; why workers were started anew.

What always holds: nothing is lost, however many threads end calls at once, and counting a call takes about a quarter of
a microsecond (``timeit`` of ``Series.observe``). A call only puts its duration aside; durations are sorted into buckets
a few hundred at a time, or when somebody asks. The names are those that Prometheus users expect,
but nothing here needs, or knows, a metrics library (``atoll.prometheus`` does). What does not belong here: finding out
what the gauges show, which the pool hands in as a ``Snapshot``.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from time import monotonic
from typing import Literal, NamedTuple

# How a call can end: with its result, with what the function raised, at its deadline, given up by the caller, with the
# death of its worker, or without having reached the function (a full queue, an open breaker, arguments that cannot
# cross, no such function).
OUTCOMES = ("ok", "error", "timeout", "cancelled", "died", "refused")

# Upper bounds of the histogram's buckets, in seconds: what a call through shared memory takes, up to five minutes.
BOUNDS = (
    *(5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2),
    *(5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 300.0),
)

# Each bucket in this many equal steps of the logarithm, for quantiles. A step is at most 2.5 ** (1 / 8), 12 %, wide.
_STEPS = 8
# Durations put aside before they are sorted in; some 30 microseconds' work at a time.
BATCH = 256
# The recent past is this many parts of this many seconds each: between 50 and 60 seconds.
_PARTS = 6
_PART_SECONDS = 10.0
# Names come from callers, and one that does not exist is a name too: from so many series on, all others are one
# function.
MOST_SERIES = 2000
OTHER_FUNCTIONS = "(other)"


def _fine_bounds() -> tuple[float, ...]:
    fine: list[float] = []
    lower = BOUNDS[0] / 2
    for upper in BOUNDS:
        fine += [lower * (upper / lower) ** (step / _STEPS) for step in range(1, _STEPS)]
        fine.append(upper)  # exactly
        lower = upper
    return tuple(fine)


_FINE = _fine_bounds()
_fine_index = partial(bisect_left, _FINE)  # a bucket holds its upper bound, as "le" says


class Distribution(NamedTuple):
    """A histogram: ``buckets`` are pairs of an upper bound in seconds, the last one infinite, and the number of calls
    that took at most that long; ``sum`` is in seconds, and ``total`` the number of calls."""

    buckets: tuple[tuple[float, int], ...]
    sum: float
    total: int


class Sample(NamedTuple):
    """One value of a metric, and the labels that tell it from the others."""

    labels: Mapping[str, str]
    value: float | Distribution


class Metric(NamedTuple):
    """A metric with all its samples. A histogram's values are ``Distribution``, all others numbers."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: tuple[Sample, ...]


class Latency(NamedTuple):
    """Durations of the calls that ended in the last 50 to 60 seconds, in seconds; None where there was no call.

    Quantiles are estimated: durations are counted in buckets at most 12 % wide, spaced by the logarithm, and a quantile
    is found within its bucket as if the calls in it were spread evenly. Above 300 seconds they say 300.
    """

    calls: int
    p50: float | None
    p95: float | None
    p99: float | None


class Snapshot(NamedTuple):
    """What the gauges show, at one moment.

    Attributes:
        in_flight: calls that workers are answering.
        queue_depth: calls that wait for a worker.
        workers: number of workers in each state; name every state, also those of which there is none.
        resident_bytes: resident memory of each worker, by its number in the pool, which a replacement takes over:
            process ids would make a new series with every restart.
        breaker_open: whether calls are refused because workers keep failing.
    """

    in_flight: int
    queue_depth: int
    workers: Mapping[str, int]
    resident_bytes: Mapping[int, int]
    breaker_open: bool


class Series:
    """How long the calls of one function with one outcome took.

    What is public beside the methods is for the path of a call, which inlines ``observe``.
    """

    __slots__ = ("_counts", "_lock", "_parts", "_sum", "pending", "put_aside", "turn")

    def __init__(self) -> None:
        self.pending: list[float] = []
        self.put_aside = self.pending.append
        # Calls never wait for it, so that one made by a finalizer in the middle of sorting does not wait for itself.
        self._lock = threading.RLock()
        self._sum = 0.0
        self._counts: dict[int, int] = {}  # of all time, by fine bucket; most are empty
        self._parts: list[dict[int, int]] = [{} for _ in range(_PARTS)]  # of the recent past, the present part first
        self.turn = -math.inf  # when the present part ends

    def observe(self, seconds: float, ended: float) -> None:
        """Count a call. From any thread; never waits.

        Args:
            seconds: how long it took.
            ended: when it ended, by ``time.monotonic()``.
        """
        if ended >= self.turn:
            self.fold(ended, False)  # what was put aside before belongs to the part that is over
        # Appending, and cutting off the beginning, are atomic each: whatever another thread appends meanwhile stays.
        self.put_aside(seconds)
        if len(self.pending) >= BATCH:
            self.fold(ended, False)

    def fold(self, now: float, wait: bool = False) -> None:
        """Sort in what was put aside, and begin another part if the present one is over. Does nothing if another thread
        is at it and ``wait`` is false."""
        if not self._lock.acquire(wait):
            return
        try:
            pending = self.pending
            chunk = pending[:]
            del pending[: len(chunk)]
            if chunk:
                counted = Counter(map(_fine_index, chunk))
                _add(self._parts[0], counted)
                _add(self._counts, counted)
                self._sum += sum(chunk)
            if now >= self.turn:
                over = _PARTS if self.turn == -math.inf else int((now - self.turn) / _PART_SECONDS) + 1
                for _ in range(min(over, _PARTS)):
                    self._parts.insert(0, {})
                    self._parts.pop()
                self.turn = now + _PART_SECONDS if over >= _PARTS else self.turn + over * _PART_SECONDS
        finally:
            self._lock.release()

    def distribution(self, now: float) -> Distribution:
        """Of all time."""
        self.fold(now, True)
        with self._lock:
            counts, total = dict(self._counts), self._sum
        coarse = [0] * (len(BOUNDS) + 1)
        for index, number in counts.items():
            coarse[index // _STEPS] += number
        cumulative = 0
        buckets = []
        for bound, number in zip((*BOUNDS, math.inf), coarse, strict=True):
            cumulative += number
            buckets.append((bound, cumulative))
        return Distribution(tuple(buckets), total, cumulative)

    def recent(self, now: float) -> dict[int, int]:
        """Calls of the recent past, by fine bucket."""
        self.fold(now, True)
        merged: dict[int, int] = {}
        with self._lock:
            for part in self._parts:
                _add(merged, part)
        return merged


def _add(into: dict[int, int], counts: Mapping[int, int]) -> None:
    for index, number in counts.items():
        into[index] = into.get(index, 0) + number


def latency(counts: Mapping[int, int]) -> Latency:
    """What ``Series.recent`` counted, as quantiles."""
    total = sum(counts.values())
    if not total:
        return Latency(0, None, None, None)
    return Latency(total, *(_quantile(counts, total, share) for share in (0.5, 0.95, 0.99)))


def _quantile(counts: Mapping[int, int], total: int, share: float) -> float:
    rank = share * total
    passed = 0
    for index in sorted(counts):
        number = counts[index]
        if passed + number >= rank:
            if index >= len(_FINE):
                break
            upper = _FINE[index]
            lower = _FINE[index - 1] if index else 0.0
            return lower + (upper - lower) * (rank - passed) / number
        passed += number
    return _FINE[-1]


class Calls(dict[tuple[str, str], Series]):
    """The series by function and outcome; made when first asked for, once, whoever asks."""

    def __missing__(self, key: tuple[str, str]) -> Series:
        function, outcome = key
        if outcome not in OUTCOMES:
            raise ValueError(f"no outcome of a call: {outcome!r}; outcomes are {', '.join(OUTCOMES)}")
        if len(self) >= MOST_SERIES and function != OTHER_FUNCTIONS:
            return self[OTHER_FUNCTIONS, outcome]
        return self.setdefault(key, Series())


class PoolMetrics:
    """What the pool of one service counts. Safe to use from any number of threads.

    Attributes:
        calls: the series of a function and an outcome: ``calls["detect", "ok"].observe(seconds, ended)``.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self.calls = Calls()
        self._lock = threading.Lock()
        self._restarts: dict[str, int] = {}

    def restarted(self, reason: str) -> None:
        """Count a worker that took the place of another, by why that was: a word of a small set, such as ``died``."""
        with self._lock:
            self._restarts[reason] = self._restarts.get(reason, 0) + 1

    @property
    def restarts(self) -> dict[str, int]:
        """How many workers took another's place, by reason."""
        return dict(self._restarts)

    def latencies(self, now: float | None = None) -> tuple[Latency, dict[str, Latency]]:
        """Quantiles of the recent past: of all calls, and by function. Calls that were refused are left out: they
        took no worker's time."""
        now = monotonic() if now is None else now
        overall: dict[int, int] = {}
        functions: dict[str, dict[int, int]] = {}
        for (function, outcome), series in self.calls.copy().items():
            if outcome != "refused":
                counts = series.recent(now)
                _add(functions.setdefault(function, {}), counts)
                _add(overall, counts)
        return latency(overall), {function: latency(counts) for function, counts in functions.items()}

    def metrics(self, snapshot: Snapshot, now: float | None = None) -> Iterator[Metric]:
        """Every metric of the pool, as of now."""
        now = monotonic() if now is None else now
        own = {"service": self._service}
        yield Metric(
            "atoll_call_duration_seconds",
            "histogram",
            "How long calls took, waiting for their turn included.",
            tuple(
                Sample({**own, "function": function, "outcome": outcome}, series.distribution(now))
                for (function, outcome), series in sorted(self.calls.copy().items())
            ),
        )
        yield Metric(
            "atoll_calls_in_flight", "gauge", "Calls that workers are answering.", (Sample(own, snapshot.in_flight),)
        )
        yield Metric(
            "atoll_queue_depth", "gauge", "Calls that wait for a worker.", (Sample(own, snapshot.queue_depth),)
        )
        yield Metric(
            "atoll_workers",
            "gauge",
            "Workers, by state.",
            tuple(Sample({**own, "state": state}, number) for state, number in snapshot.workers.items()),
        )
        yield Metric(
            "atoll_worker_restarts_total",
            "counter",
            "Workers that took another's place, by reason.",
            tuple(Sample({**own, "reason": reason}, number) for reason, number in sorted(self.restarts.items())),
        )
        yield Metric(
            "atoll_worker_resident_bytes",
            "gauge",
            "Resident memory of a worker, by its number in the pool.",
            tuple(
                Sample({**own, "worker": str(number)}, size) for number, size in sorted(snapshot.resident_bytes.items())
            ),
        )
        yield Metric(
            "atoll_breaker_open",
            "gauge",
            "1 while calls are refused because workers keep failing, else 0.",
            (Sample(own, int(snapshot.breaker_open)),),
        )


def merged(metrics: Iterable[Metric]) -> list[Metric]:
    """The metrics of several pools as those of one process: samples of the same name and labels, which pools of the
    same service have, are added up."""
    kinds: dict[str, Metric] = {}
    samples: dict[str, dict[tuple[tuple[str, str], ...], Sample]] = {}
    for metric in metrics:
        kinds.setdefault(metric.name, metric)
        known = samples.setdefault(metric.name, {})
        for sample in metric.samples:
            key = tuple(sorted(sample.labels.items()))
            known[key] = _sum(known[key], sample) if key in known else sample
    return [metric._replace(samples=tuple(samples[name].values())) for name, metric in kinds.items()]


def _sum(one: Sample, other: Sample) -> Sample:
    if isinstance(one.value, Distribution):
        assert isinstance(other.value, Distribution)
        pairs = zip(one.value.buckets, other.value.buckets, strict=True)
        buckets = tuple((bound, count + more) for (bound, count), (_, more) in pairs)
        total = Distribution(buckets, one.value.sum + other.value.sum, one.value.total + other.value.total)
        return Sample(one.labels, total)
    assert not isinstance(other.value, Distribution)
    return Sample(one.labels, one.value + other.value)
