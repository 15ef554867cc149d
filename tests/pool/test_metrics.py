# SPDX-License-Identifier: Apache-2.0
"""Metrics of a pool: no call is lost, buckets hold what they say, quantiles are near the truth and forget."""

from __future__ import annotations

import itertools
import math
import random
import sys
import threading
from collections.abc import Iterator

import pytest

from atoll.pool import metrics
from atoll.pool.metrics import BOUNDS, OUTCOMES, Distribution, PoolMetrics, Sample, Series, Snapshot, merged

IDLE = Snapshot(in_flight=0, queue_depth=0, workers={"ready": 1}, resident_bytes={}, breaker_open=False)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads are interrupted as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("frequent_switches")
def test_no_call_of_eight_threads_is_lost_while_a_ninth_reads() -> None:
    pool = PoolMetrics("s")
    each = 20_000
    ended = threading.Event()
    totals: list[int] = []

    def call(seed: int) -> None:
        times = random.Random(seed)
        for number in range(each):
            # The clock goes on, so that parts of the recent past turn over meanwhile.
            pool.calls["f", "ok"].observe(times.choice((1e-5, 1e-3, 0.5)), 100.0 + number / 500)

    def read() -> None:
        while not ended.is_set():
            totals.append(pool.calls["f", "ok"].distribution(100.0).total)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    reader = threading.Thread(target=read)
    for thread in (*callers, reader):
        thread.start()
    for thread in callers:
        thread.join()
    ended.set()
    reader.join()
    found = pool.calls["f", "ok"].distribution(200.0)
    assert found.total == 8 * each
    counts = dict(found.buckets)
    assert counts[math.inf] == 8 * each
    expected = 0.0
    for seed in range(8):
        times = random.Random(seed)
        expected += sum(times.choice((1e-5, 1e-3, 0.5)) for _ in range(each))
    assert found.sum == pytest.approx(expected)
    assert totals == sorted(totals)  # a counter never goes back


def test_buckets_are_cumulative_and_hold_their_upper_bound() -> None:
    series = Series()
    for seconds in (*BOUNDS, 0.0, 1000.0):
        series.observe(seconds, 1.0)
    found = series.distribution(1.0)
    assert [bound for bound, _ in found.buckets] == [*BOUNDS, math.inf]
    assert [count for _, count in found.buckets] == [*range(2, len(BOUNDS) + 2), len(BOUNDS) + 2]
    assert found.total == len(BOUNDS) + 2
    assert found.sum == pytest.approx(sum(BOUNDS) + 1000.0)


def test_bounds_are_what_is_documented() -> None:
    assert BOUNDS[0] == 5e-6
    assert BOUNDS[-1] == 300.0
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert max(upper / lower for lower, upper in itertools.pairwise(BOUNDS)) <= 3.0


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_within_the_width_of_a_bucket(seed: int) -> None:
    chance = random.Random(seed)
    pool = PoolMetrics("s")
    durations = sorted(chance.lognormvariate(chance.uniform(-11, 0), 1.0) for _ in range(5000))
    for seconds in durations:
        pool.calls["f", "ok"].observe(seconds, 50.0)
    overall, functions = pool.latencies(50.0)
    assert functions == {"f": overall}
    assert overall.calls == 5000
    for found, share in ((overall.p50, 0.5), (overall.p95, 0.95), (overall.p99, 0.99)):
        assert found == pytest.approx(durations[int(share * 5000)], rel=0.13)


def test_quantiles_of_nothing_and_of_very_long_calls() -> None:
    pool = PoolMetrics("s")
    assert pool.latencies(0.0) == (metrics.Latency(0, None, None, None), {})
    pool.calls["f", "ok"].observe(5000.0, 1.0)
    assert pool.latencies(1.0)[0] == metrics.Latency(1, 300.0, 300.0, 300.0)


def test_the_recent_past_forgets_and_the_histogram_does_not() -> None:
    series = Series()
    series.observe(1.0, 100.0)
    series.observe(1.0, 109.0)
    assert sum(series.recent(110.0).values()) == 2
    series.observe(1.0, 135.0)
    assert sum(series.recent(149.0).values()) == 3
    assert sum(series.recent(165.0).values()) == 1
    assert sum(series.recent(500.0).values()) == 0
    series.observe(1.0, 1000.0)
    assert sum(series.recent(1000.0).values()) == 1
    assert series.distribution(1000.0).total == 4


def test_what_was_put_aside_long_ago_is_not_the_recent_past() -> None:
    series = Series()
    series.observe(1.0, 0.0)  # and nobody looks for an hour
    series.observe(2.0, 3600.0)
    assert sum(series.recent(3600.0).values()) == 1


def test_latencies_by_function_and_overall_leave_refusals_out() -> None:
    pool = PoolMetrics("s")
    for outcome in OUTCOMES:
        pool.calls["f", outcome].observe(0.01, 10.0)
    pool.calls["g", "ok"].observe(1.0, 10.0)
    overall, functions = pool.latencies(10.0)
    assert overall.calls == 6
    assert {name: one.calls for name, one in functions.items()} == {"f": 5, "g": 1}
    assert functions["g"].p50 == pytest.approx(1.0, rel=0.13)


def test_an_outcome_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no outcome of a call: 'fine'; outcomes are ok, error, timeout"):
        PoolMetrics("s").calls["f", "fine"]


def test_names_without_end_become_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 10)
    pool = PoolMetrics("s")
    for number in range(1000):
        pool.calls[f"f{number}", "refused"].observe(0.0, 1.0)
    assert len(pool.calls) == 11
    assert pool.calls[metrics.OTHER_FUNCTIONS, "refused"].distribution(1.0).total == 990


def test_every_metric_has_its_standard_name_kind_and_labels() -> None:
    pool = PoolMetrics("vision")
    pool.calls["detect", "ok"].observe(0.02, 5.0)
    pool.restarted("died")
    pool.restarted("died")
    pool.restarted("age")
    snapshot = Snapshot(3, 7, {"ready": 2, "starting": 0}, {0: 1 << 20, 1: 2 << 20}, True)
    found = {metric.name: metric for metric in pool.metrics(snapshot, 5.0)}
    assert {name: metric.kind for name, metric in found.items()} == {
        "atoll_call_duration_seconds": "histogram",
        "atoll_calls_in_flight": "gauge",
        "atoll_queue_depth": "gauge",
        "atoll_workers": "gauge",
        "atoll_worker_restarts_total": "counter",
        "atoll_worker_resident_bytes": "gauge",
        "atoll_breaker_open": "gauge",
    }
    assert all(metric.help.endswith(".") for metric in found.values())
    own = {"service": "vision"}
    (calls,) = found["atoll_call_duration_seconds"].samples
    assert calls.labels == {**own, "function": "detect", "outcome": "ok"}
    assert isinstance(calls.value, Distribution)
    assert (calls.value.total, calls.value.sum) == (1, 0.02)
    assert found["atoll_calls_in_flight"].samples == (Sample(own, 3),)
    assert found["atoll_queue_depth"].samples == (Sample(own, 7),)
    assert found["atoll_workers"].samples == (
        Sample({**own, "state": "ready"}, 2),
        Sample({**own, "state": "starting"}, 0),
    )
    assert found["atoll_worker_restarts_total"].samples == (
        Sample({**own, "reason": "age"}, 1),
        Sample({**own, "reason": "died"}, 2),
    )
    assert found["atoll_worker_resident_bytes"].samples == (
        Sample({**own, "worker": "0"}, 1 << 20),
        Sample({**own, "worker": "1"}, 2 << 20),
    )
    assert found["atoll_breaker_open"].samples == (Sample(own, 1),)


def test_pools_of_one_service_are_added_up_and_others_are_not() -> None:
    pools = [PoolMetrics("a"), PoolMetrics("a"), PoolMetrics("b")]
    for pool in pools:
        pool.calls["f", "ok"].observe(0.02, 5.0)
        pool.restarted("died")
    found = {metric.name: metric for metric in merged(one for pool in pools for one in pool.metrics(IDLE, 5.0))}
    assert len(found) == 7
    calls = {sample.labels["service"]: sample.value for sample in found["atoll_call_duration_seconds"].samples}
    assert {name: value.total for name, value in calls.items() if isinstance(value, Distribution)} == {"a": 2, "b": 1}
    restarts = found["atoll_worker_restarts_total"].samples
    assert {sample.labels["service"]: sample.value for sample in restarts} == {"a": 2, "b": 1}


def test_a_call_counted_in_the_middle_of_sorting_does_not_wait_for_itself() -> None:
    series = Series()

    class Strange(float):
        """Whatever runs while durations are sorted in, such as a finalizer."""

        def __radd__(self, other: float) -> float:
            for _ in range(1000):
                series.observe(1.0, 1.0)
            return 0.0

    series.observe(Strange(1.0), 1.0)
    counted: list[int] = []
    thread = threading.Thread(target=lambda: counted.append(series.distribution(1.0).total), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert series.distribution(1.0).total == 1001


def test_a_call_does_not_wait_while_another_thread_sorts() -> None:
    series = Series()
    with series._lock:
        thread = threading.Thread(target=lambda: [series.observe(1.0, 1.0) for _ in range(1000)], daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    assert series.distribution(1.0).total == 1000
