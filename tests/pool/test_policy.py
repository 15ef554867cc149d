# SPDX-License-Identifier: Apache-2.0
"""The supervision policy: one test for each of its rules, and random lives of a pool against what always holds."""

from __future__ import annotations

import itertools
import re
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.manifest.options import Breaker, Recycle, Restart
from atoll.pool.lifecycle import (
    POOL_TRANSITIONS,
    WORKER_TRANSITIONS,
    Action,
    Cause,
    CloseBreaker,
    Kill,
    OpenBreaker,
    Ping,
    PoolEvent,
    PoolState,
    Refusal,
    Retire,
    Sample,
    Start,
    WorkerEvent,
    WorkerState,
)
from atoll.pool.policy import _DRAIN, Policy
from atoll.pool.policy import __file__ as policy_file

IDLE = Sample(calls=0, in_flight=0, rss=100, idle_for=0.0, cpu_seconds=1.0, stopped=False, pong_age=None)
BUSY = IDLE._replace(in_flight=1)


def policy(
    minimum: int = 1,
    maximum: int | None = None,
    *,
    restart: Restart | None = None,
    breaker: Breaker | None = None,
    recycle: Recycle | None = None,
    health_interval: float | None = None,
    idle_timeout: float = 60.0,
    draw: float = 0.5,
) -> Policy:
    """A policy without jitter (``draw`` 0.5), pings and recycling, unless asked for."""
    return Policy(
        minimum=minimum,
        maximum=minimum if maximum is None else maximum,
        restart=restart or Restart(),
        breaker=breaker or Breaker(),
        recycle=recycle or Recycle(),
        health_interval=health_interval,
        idle_timeout=idle_timeout,
        random=lambda: draw,
    )


def serving(workers: int = 1, **options: Any) -> Policy:
    """A pool with so many workers, numbered from 1, that were ready at 0 and have each served a call."""
    made = policy(**{"minimum": workers, **options})
    made.wanted(0, workers)
    for worker in range(1, workers + 1):
        made.ready(worker, 0, 100)
        made.succeeded(worker, 0)
    assert set(made.workers.values()) == {WorkerState.READY}
    return made


def sampled(made: Policy, now: float, **samples: Sample) -> list[Action]:
    """A tick with these samples (``w1`` is of worker 1)."""
    for name, sample in samples.items():
        made.sampled(int(name[1:]), now, sample)
    return made.tick(now)


# --- starting and scaling


def test_nothing_is_started_before_somebody_asks() -> None:
    made = policy(4)
    assert made.state is PoolState.NEW
    assert made.tick(100) == []
    assert made.reload(100) == []
    assert made.scale(100, 2, 3) == []
    assert made.next_wake is None
    assert made.refusal(100) is None


def test_the_minimum_is_started_at_once_and_in_parallel() -> None:
    made = policy(3)
    assert made.wanted(0, 0) == [Start(1), Start(2), Start(3)]
    assert made.state is PoolState.RUNNING
    assert made.wanted(0, 3) == []


def test_one_worker_for_every_caller_that_waits_beyond_those_starting() -> None:
    made = policy(0, 4)
    assert made.wanted(0, 1) == [Start(1)]
    assert made.wanted(0, 1) == []
    assert made.wanted(0, 3) == [Start(2), Start(3)]
    made.ready(1, 1, 0)
    assert made.wanted(1, 3) == [Start(4)]
    assert made.wanted(1, 100) == []


def test_idle_workers_beyond_the_minimum_are_retired_longest_idle_first() -> None:
    made = serving(3, minimum=1, maximum=3, idle_timeout=10)
    assert made.next_wake == 10
    samples = {"w1": IDLE._replace(idle_for=10), "w2": IDLE._replace(idle_for=12), "w3": IDLE._replace(idle_for=11)}
    assert sampled(made, 12, **samples) == [Retire(2, "idle for 12 s"), Retire(3, "idle for 11 s")]
    assert made.ended(2, 13, Cause.RETIRED, "") == []
    assert made.ended(3, 13, Cause.RETIRED, "") == []
    assert made.workers == {1: WorkerState.READY}


def test_a_pool_may_shrink_to_nothing_and_grow_again() -> None:
    made = serving(1, minimum=0, maximum=1, idle_timeout=10)
    assert sampled(made, 10, w1=IDLE._replace(idle_for=10)) == [Retire(1, "idle for 10 s")]
    assert made.wanted(10.5, 1) == []  # the old one is still there; there is room for one
    assert made.ended(1, 11, Cause.RETIRED, "") == [Start(2)]


def test_a_worker_that_works_is_not_idle() -> None:
    made = serving(2, minimum=1, maximum=2, idle_timeout=10)
    assert sampled(made, 20, w1=BUSY, w2=BUSY) == []
    assert made.next_wake == 30


def test_scaling_down_lets_go_who_is_idle_for_longest() -> None:
    made = serving(3)
    sampled(made, 5, w1=BUSY, w2=IDLE._replace(idle_for=5), w3=BUSY)
    assert made.scale(5, 1, 2) == [Retire(2, "the pool is scaled down")]


def test_scaling_down_ends_a_worker_that_is_not_ready() -> None:
    made = serving(1, minimum=1, maximum=2)
    made.wanted(1, 1)
    assert made.scale(1, 1, 1) == [Kill(2, "the pool is scaled down", Cause.RETIRED)]
    assert made.ended(2, 2, Cause.CRASHED, "killed") == []
    assert made.restarts == 0


@pytest.mark.parametrize("fatal", [True, False])
def test_what_becomes_of_a_worker_that_nobody_needs_blames_nobody(fatal: bool) -> None:
    made = serving(1, minimum=1, maximum=2, restart=Restart(max_restarts=0))
    made.wanted(1, 1)
    made.scale(1, 1, 1)
    assert made.failed(2, 2, "killed", fatal=fatal) == []
    assert made.scale(3, 2, 2) == [Start(3)]


def test_scaling_down_while_one_is_replaced_lets_go_of_another() -> None:
    made = serving(3)
    assert made.reload(1) == [Start(4, replaces=1)]
    assert made.scale(2, 1, 2) == [Retire(2, "the pool is scaled down")]
    assert made.ready(4, 3, 0) == [Retire(1, "reloaded")]


def test_who_retires_after_scaling_down_is_waited_for_before_another_is_replaced() -> None:
    made = serving(3)
    made.scale(1, 1, 1)
    assert made.reload(1.5) == []
    assert made.ended(1, 1.6, Cause.RETIRED, "") == []
    assert made.ended(2, 3, Cause.RETIRED, "") == [Start(4, replaces=3)]


def test_ticks_without_samples_are_no_busy_loop() -> None:
    made = serving(2, minimum=1, maximum=2, idle_timeout=10)
    sampled(made, 1, w1=BUSY, w2=BUSY)
    assert made.tick(20) == []
    assert made.next_wake == 20.1


def test_scaling_up_starts_the_minimum() -> None:
    assert serving(1).scale(1, 3, 4) == [Start(2), Start(3)]


@pytest.mark.parametrize(("minimum", "maximum"), [(-1, 1), (0, 0), (2, 1)])
def test_wrong_bounds(minimum: int, maximum: int) -> None:
    expected = re.escape(f"workers from {minimum} to {maximum}: expected 0 <= minimum <= maximum")
    with pytest.raises(ValueError, match=expected):
        policy(minimum, maximum)
    made = serving(1)
    with pytest.raises(ValueError, match=expected):
        made.scale(0, minimum, maximum)


# --- restarting


def test_the_first_restart_is_at_once() -> None:
    made = serving(1)
    assert made.ended(1, 5, Cause.CRASHED, "signal 11") == [Start(2, restart=True)]
    assert made.restarts == 1


def test_pauses_double_up_to_the_longest() -> None:
    made = policy(1, restart=Restart(backoff=1, backoff_max=5, max_restarts=100), breaker=Breaker(failures=100))
    made.wanted(0, 1)
    now, pauses = 0.0, []
    for worker in range(1, 8):
        started = made.failed(worker, now, "no")
        if not started:
            assert made.next_wake is not None
            pauses.append(made.next_wake - now)
            assert made.tick(made.next_wake - 0.01) == []
            now = made.next_wake
            started = made.tick(now)
        assert started == [Start(worker + 1, restart=True)]
    assert pauses == [1, 2, 4, 5, 5, 5]


@pytest.mark.parametrize(("draw", "pause"), [(0.0, 0.75), (0.5, 1.0), (1.0, 1.25)])
def test_pauses_differ_by_a_quarter(draw: float, pause: float) -> None:
    made = policy(1, restart=Restart(backoff=1), draw=draw)
    made.wanted(0, 1)
    made.failed(1, 0, "no")
    made.failed(2, 0, "no")
    assert made.next_wake == pause


def test_a_pause_never_overflows() -> None:
    made = policy(1, restart=Restart(max_restarts=10**6, backoff_max=7), breaker=Breaker(failures=10**6))
    made.wanted(0, 1)
    now = 0.0
    for worker in range(1, 2000):
        made.failed(worker, now, "no")
        now = made.next_wake or now
        made.tick(now)
    assert made.workers == {2000: WorkerState.STARTING}


def test_who_waits_does_not_cut_a_pause_short() -> None:
    made = policy(1, 3, restart=Restart(backoff=1))
    made.wanted(0, 1)
    made.failed(1, 0, "no")
    made.failed(2, 0, "no")
    assert made.wanted(0.5, 3) == []
    assert made.tick(1) == [Start(3, restart=True), Start(4), Start(5)]


def test_a_success_ends_a_row_of_failures() -> None:
    made = serving(2, restart=Restart(backoff=1))
    made.ended(1, 1, Cause.CRASHED, "")
    assert made.failed(3, 1, "no") == []
    assert made.succeeded(2, 1.5) == [Start(4, restart=True)]
    assert made.failed(4, 2, "no") == [Start(5, restart=True)]


def test_workers_that_served_and_are_killed_together_are_no_row() -> None:
    made = serving(8)
    started = [made.ended(worker, 1, Cause.CRASHED, "signal 9") for worker in range(1, 9)]
    assert started == [[Start(worker, restart=True)] for worker in range(9, 17)]


@pytest.mark.parametrize("cause", [Cause.CANCELLED, Cause.RETIRED])
def test_an_end_that_was_wanted_is_no_failure(cause: Cause) -> None:
    made = serving(1, restart=Restart(max_restarts=0))
    assert made.ended(1, 1, cause, "") == [Start(2)]
    assert (made.state, made.restarts) == (PoolState.RUNNING, 0)


@pytest.mark.parametrize("cause", [Cause.CRASHED, Cause.OUT_OF_MEMORY, Cause.UNRESPONSIVE])
def test_an_end_that_was_not_wanted_is_a_failure(cause: Cause) -> None:
    made = serving(1, restart=Restart(max_restarts=0))
    assert [type(one) for one in made.ended(1, 1, cause, "")] == [OpenBreaker]


def test_a_fatal_failure_waits_for_the_next_caller() -> None:
    made = policy(2)
    made.wanted(0, 1)
    assert made.failed(1, 1, "cannot be built", fatal=True) == []
    assert made.failed(2, 1, "cannot be built", fatal=True) == []
    assert made.next_wake is None
    assert made.tick(1000) == []
    assert made.refusal(1000) is None
    assert made.wanted(1000, 1) == [Start(3), Start(4)]
    assert made.restarts == 0


def test_fatal_failures_do_not_open_the_breaker() -> None:
    made = policy(1, breaker=Breaker(failures=1), restart=Restart(max_restarts=0))
    for worker in range(1, 50):
        assert made.wanted(worker, 1) == [Start(worker)]
        assert made.failed(worker, worker, "cannot be built", fatal=True) == []


def test_a_worker_that_ends_after_a_fatal_failure_of_another_is_replaced() -> None:
    """Callers may have queued for it."""
    made = serving(1, minimum=1, maximum=2)
    made.wanted(1, 1)
    made.failed(2, 2, "cannot be built", fatal=True)
    assert made.ended(1, 3, Cause.CRASHED, "") != []


# --- the breaker


def tripped(**options: Any) -> Policy:
    """A pool of one whose breaker opened at 0, with a cooldown of 5 s."""
    made = policy(1, breaker=Breaker(failures=1, cooldown=5), **options)
    made.wanted(0, 1)
    opened = made.failed(1, 0, "ImportError: no torch")
    assert opened == [OpenBreaker("1 worker failed: ImportError: no torch", 5)]
    return made


def test_failures_in_a_row_open_the_breaker() -> None:
    made = policy(1, restart=Restart(backoff=0, backoff_max=0), breaker=Breaker(failures=3, cooldown=5))
    made.wanted(0, 1)
    assert made.failed(1, 0, "a") == [Start(2, restart=True)]
    assert made.ended(2, 0, Cause.CRASHED, "b") == [Start(3, restart=True)]
    assert made.failed(3, 1, "c") == [OpenBreaker("3 workers failed one after another; the last: c", 6)]
    assert made.state is PoolState.OPEN


def crash_loop(made: Policy, now: float, workers: itertools.count[int]) -> tuple[int, OpenBreaker]:
    """Workers serve a call and crash until the breaker opens; how many restarts that took."""
    for restarts in itertools.count():
        worker = next(workers)
        made.ready(worker, now, 0)
        made.succeeded(worker, now)
        (action,) = made.ended(worker, now, Cause.CRASHED, "signal 11")
        if isinstance(action, OpenBreaker):
            return restarts, action
    raise AssertionError


def test_a_crash_loop_opens_the_breaker_although_calls_succeed() -> None:
    made = policy(1, restart=Restart(max_restarts=4, window=60), breaker=Breaker(cooldown=5))
    made.wanted(0, 1)
    restarts, opened = crash_loop(made, 10, itertools.count(1))
    assert restarts == 4
    assert opened == OpenBreaker("crash loop: another end after 4 restarts within 60 s: signal 11", 15)


def test_restarts_are_counted_within_the_window_only() -> None:
    made = serving(1, restart=Restart(max_restarts=2, window=60))
    for worker in range(1, 100):
        (action,) = made.ended(worker, worker * 30, Cause.CRASHED, "")
        assert action == Start(worker + 1, restart=True)
        made.ready(worker + 1, worker * 30, 0)
        made.succeeded(worker + 1, worker * 30)


def test_restarts_are_allowed_for_each_worker() -> None:
    made = serving(4, restart=Restart(max_restarts=1))
    for worker in range(1, 5):
        assert made.ended(worker, 1, Cause.CRASHED, "") == [Start(worker + 4, restart=True)]
    for worker in range(5, 9):
        made.ready(worker, 1, 0)
        made.succeeded(worker, 1)
    assert [type(one) for one in made.ended(5, 2, Cause.CRASHED, "")] == [OpenBreaker]


def test_while_it_is_open_callers_are_refused_with_the_reason() -> None:
    made = tripped()
    refusal = made.refusal(2)
    assert refusal == Refusal("1 worker failed: ImportError: no torch", 3)
    assert made.wanted(2, 5) == []
    assert made.tick(3) == []
    assert made.next_wake == 5
    assert made.refusal(5) is None


def test_workers_that_live_go_on_serving_while_it_is_open() -> None:
    made = serving(2, restart=Restart(max_restarts=0))
    made.scale(0, 1, 2)
    assert [type(one) for one in made.ended(1, 1, Cause.CRASHED, "x")] == [OpenBreaker]
    assert made.refusal(1) is None
    assert made.workers == {2: WorkerState.READY}
    assert made.ended(2, 2, Cause.CRASHED, "y") == []
    assert made.refusal(2) is not None


def test_after_the_cooldown_one_probe_is_started_for_the_next_caller() -> None:
    made = tripped()
    made.scale(1, 4, 4)
    assert made.tick(5) == []
    assert made.state is PoolState.HALF_OPEN
    assert made.next_wake is None
    assert made.wanted(9, 3) == [Start(2, restart=True)]
    assert made.wanted(9, 9) == []
    assert made.refusal(9) is None


def test_where_others_serve_the_probe_is_started_at_once() -> None:
    made = serving(2, restart=Restart(max_restarts=0), breaker=Breaker(cooldown=5))
    made.ended(1, 1, Cause.CRASHED, "x")
    assert made.tick(6.5) == [Start(3, restart=True)]


def test_a_caller_may_come_before_the_tick_that_ends_the_cooldown() -> None:
    assert tripped().wanted(5, 1) == [Start(2, restart=True)]


def test_a_probe_that_serves_closes_the_breaker_and_all_others_start() -> None:
    made = tripped()
    made.scale(1, 3, 3)
    made.wanted(6, 1)
    assert made.ready(2, 7, 0) == []
    assert made.succeeded(2, 8) == [CloseBreaker(), Start(3), Start(4)]
    assert made.state is PoolState.RUNNING


def test_a_probe_that_nobody_calls_closes_it_by_being_ready() -> None:
    made = tripped()
    made.wanted(6, 1)
    made.ready(2, 7, 0)
    assert made.next_wake == 8
    assert sampled(made, 7.9, w2=IDLE) == []
    assert sampled(made, 8, w2=IDLE) == [CloseBreaker()]


def test_after_the_breaker_closed_the_row_begins_anew() -> None:
    made = policy(1, restart=Restart(backoff=0), breaker=Breaker(failures=3, cooldown=5))
    made.wanted(0, 1)
    for worker in (1, 2, 3):
        made.failed(worker, 0, "x")
    made.wanted(5, 1)
    made.ready(4, 5, 0)
    assert sampled(made, 6, w4=IDLE) == [CloseBreaker()]
    assert made.ended(4, 7, Cause.CRASHED, "x") == [Start(5, restart=True)]


def test_a_probe_in_a_long_call_closes_it_after_a_cooldown() -> None:
    made = tripped()
    made.wanted(6, 1)
    made.ready(2, 7, 0)
    assert sampled(made, 8, w2=BUSY) == []
    assert made.next_wake == 12
    assert sampled(made, 12, w2=BUSY) == [CloseBreaker()]


def test_a_probe_that_fails_opens_it_for_ever_longer() -> None:
    made = tripped()
    now, pauses = 5.0, []
    for worker in range(2, 9):
        assert made.wanted(now, 1) == [Start(worker, restart=True)]
        (action,) = made.failed(worker, now, "still no torch")
        assert isinstance(action, OpenBreaker)
        assert action.reason == "the worker that was tried failed too: still no torch"
        pauses.append(action.until - now)
        now = action.until
    assert pauses == [10, 20, 40, 60, 60, 60, 60]


def test_a_probe_whose_failure_is_fatal_opens_it_too() -> None:
    made = tripped()
    made.wanted(5, 1)
    assert made.failed(2, 6, "gone", fatal=True) == [OpenBreaker("the worker that was tried failed too: gone", 16)]


def test_a_probe_that_a_caller_cancelled_proves_nothing_and_another_is_tried() -> None:
    made = tripped()
    made.wanted(5, 2)
    made.ready(2, 6, 0)
    assert made.ended(2, 6.5, Cause.CANCELLED, "deadline") == [Start(3, restart=True)]
    assert made.state is PoolState.HALF_OPEN


def test_one_that_was_starting_when_it_opened_is_the_probe() -> None:
    made = policy(2, breaker=Breaker(failures=1, cooldown=5))
    made.wanted(0, 2)
    made.failed(1, 0, "x")
    assert made.wanted(5, 1) == []
    made.ready(2, 6, 0)
    assert made.succeeded(2, 7) == [CloseBreaker(), Start(3)]


def test_success_of_a_worker_from_before_does_not_close_it() -> None:
    made = serving(2, restart=Restart(max_restarts=0), breaker=Breaker(cooldown=5))
    made.ended(1, 1, Cause.CRASHED, "x")
    made.tick(6)
    assert made.succeeded(2, 6) == []
    assert made.state is PoolState.HALF_OPEN


def test_nothing_is_replaced_while_a_probe_runs() -> None:
    made = serving(2, restart=Restart(max_restarts=0), breaker=Breaker(cooldown=5))
    made.ended(1, 1, Cause.CRASHED, "x")
    assert made.tick(6) == [Start(3, restart=True)]
    assert made.reload(6) == []
    made.ready(3, 7, 0)
    assert made.succeeded(3, 7) == [CloseBreaker(), Start(4, replaces=2)]


def test_losing_the_last_worker_while_half_open_starts_the_probe() -> None:
    """Callers may have queued for it, and nobody tells of them again."""
    made = serving(2, restart=Restart(max_restarts=0), breaker=Breaker(cooldown=5))
    made.ended(1, 1, Cause.CRASHED, "x")
    made.scale(2, 1, 1)
    assert made.tick(6) == []
    assert made.ended(2, 7, Cause.CRASHED, "y") == [Start(3, restart=True)]


def test_opening_again_soon_after_closing_is_for_longer() -> None:
    made = policy(1, restart=Restart(max_restarts=1, window=60), breaker=Breaker(cooldown=5))
    made.wanted(0, 1)
    workers = itertools.count(1)
    now, pauses = 0.0, []
    for _ in range(6):
        _, opened = crash_loop(made, now, workers)
        pauses.append(opened.until - now)
        now = opened.until
        made.wanted(now, 1)
        now += 1
    assert pauses == [5, 10, 20, 40, 60, 60]
    made.ready(next(workers), now, 0)
    made.succeeded(13, now)
    now += 61
    made.ended(13, now, Cause.CRASHED, "x")
    made.ready(14, now, 0)
    assert made.ended(14, now, Cause.CRASHED, "y")[0] == OpenBreaker(
        "crash loop: another end after 1 restart within 60 s: y", now + 5
    )


# --- replacing


@pytest.mark.parametrize(
    ("recycle", "sample", "why"),
    [
        (Recycle(calls=5), BUSY._replace(calls=5), "recycled after 5 calls"),
        (Recycle(age=60), BUSY, "recycled at the age of 60 s"),
        (Recycle(memory_growth="2MB"), BUSY._replace(rss=2_000_100), "recycled as its memory grew by 2 MB"),
    ],
)
def test_a_worker_is_recycled_after_its_replacement_is_ready(recycle: Recycle, sample: Sample, why: str) -> None:
    made = serving(1, recycle=recycle)
    nothing_due = sample._replace(calls=4, rss=2_000_099)
    assert sampled(made, 59.9, w1=nothing_due) == []
    assert sampled(made, 60, w1=sample) == [Start(2, replaces=1)]
    assert sampled(made, 61, w1=sample) == []
    assert made.ready(2, 62, 0) == [Retire(1, why)]
    assert made.ended(1, 63, Cause.RETIRED, "") == []
    assert made.restarts == 0


def test_calls_and_memory_are_looked_at_without_pings() -> None:
    assert serving(1).next_wake is None
    made = serving(1, recycle=Recycle(calls=5))
    assert made.next_wake == 2
    sampled(made, 2, w1=BUSY)
    assert made.next_wake == 4
    assert serving(1, recycle=Recycle(memory_growth=5)).next_wake == 2
    assert serving(1, recycle=Recycle(age=500)).next_wake == 500


def test_one_at_a_time_is_replaced() -> None:
    made = serving(3, recycle=Recycle(age=60))
    assert made.tick(60) == [Start(4, replaces=1)]
    assert made.tick(61) == []
    assert made.ready(4, 62, 0) == [Retire(1, "recycled at the age of 60 s")]
    assert made.tick(62.5) == []
    assert made.ended(1, 64, Cause.RETIRED, "") == [Start(5, replaces=2)]


def test_a_reload_replaces_every_worker_one_after_another() -> None:
    made = serving(2)
    assert made.reload(1) == [Start(3, replaces=1)]
    assert made.ready(3, 2, 0) == [Retire(1, "reloaded")]
    assert made.ended(1, 3, Cause.RETIRED, "") == [Start(4, replaces=2)]
    assert made.ready(4, 4, 0) == [Retire(2, "reloaded")]
    assert made.ended(2, 5, Cause.RETIRED, "") == []
    assert made.workers == {3: WorkerState.READY, 4: WorkerState.READY}


def test_who_was_let_go_and_does_not_end_is_not_waited_for_for_ever() -> None:
    """A stream that somebody keeps open on one worker does not keep the others from being replaced."""
    made = serving(2)
    made.reload(1)
    assert made.ready(3, 2, 0) == [Retire(1, "reloaded")]
    assert made.next_wake == 2 + _DRAIN
    assert made.tick(made.next_wake) == [Start(4, replaces=2)]
    assert made.ready(4, 5, 0) == [Retire(2, "reloaded")]
    assert made.tick(5 + _DRAIN) == []
    assert made.next_wake is None
    # Those that linger take nobody's place when another one is needed.
    assert made.ended(3, 7, Cause.CRASHED, "gone") == [Start(5, restart=True)]
    assert made.ended(1, 8, Cause.RETIRED, "") == []
    assert made.ended(2, 8, Cause.RETIRED, "") == []


def test_a_reload_ends_with_the_first_that_fails_and_blames_nobody() -> None:
    made = serving(2, breaker=Breaker(failures=1))
    made.reload(1)
    assert made.failed(3, 2, "SyntaxError") == []
    assert made.state is PoolState.RUNNING
    assert made.next_wake is None
    assert made.tick(100) == []
    assert made.reload(101) == [Start(4, replaces=1)]


def test_a_reload_that_comes_while_workers_start_replaces_them_too() -> None:
    made = policy(1)
    made.wanted(0, 1)
    assert made.reload(1) == []
    assert made.ready(1, 2, 0) == [Start(2, replaces=1)]


def test_a_replacement_that_fails_leaves_the_old_worker_and_is_tried_again() -> None:
    made = serving(1, restart=Restart(backoff=1), recycle=Recycle(age=1))
    assert made.tick(1) == [Start(2, replaces=1)]
    assert made.failed(2, 2, "SyntaxError") == [Start(3, replaces=1, restart=True)]
    assert made.failed(3, 2, "SyntaxError") == []
    assert made.workers == {1: WorkerState.READY}
    assert made.tick(3) == [Start(4, replaces=1, restart=True)]


def test_replacements_that_only_fail_open_the_breaker_and_the_old_workers_serve() -> None:
    made = serving(1, breaker=Breaker(failures=1, cooldown=5), recycle=Recycle(age=1))
    assert made.tick(1) == [Start(2, replaces=1)]
    assert [type(one) for one in made.failed(2, 2, "SyntaxError")] == [OpenBreaker]
    assert made.refusal(2) is None
    assert made.tick(7) == [Start(3, replaces=1, restart=True)]
    made.ready(3, 8, 0)
    assert made.succeeded(3, 9) == [CloseBreaker()]


def test_an_old_worker_that_dies_leaves_its_place_to_the_replacement() -> None:
    made = serving(1)
    made.reload(1)
    assert made.ended(1, 2, Cause.CRASHED, "") == []
    assert made.ready(2, 3, 0) == []
    assert made.workers == {2: WorkerState.READY}
    assert made.scale(4, 2, 2) == [Start(3)]  # whose place was taken already is not restarted later


def test_a_replacement_that_dies_while_the_old_worker_drains_is_replaced() -> None:
    made = serving(1)
    made.reload(1)
    made.ready(2, 2, 0)
    assert made.ended(2, 3, Cause.CRASHED, "") == [Start(3, restart=True)]
    assert made.workers == {1: WorkerState.RETIRING, 3: WorkerState.STARTING}


def test_what_ends_a_retiring_worker_blames_nobody() -> None:
    made = serving(1, restart=Restart(max_restarts=0))
    made.reload(1)
    made.ready(2, 2, 0)
    assert made.ended(1, 3, Cause.CRASHED, "signal 11") == []
    assert made.state is PoolState.RUNNING


# --- liveness


PINGED = {"health_interval": 10.0}


def unanswered(sample: Sample, until: float) -> list[Action]:
    """A worker is pinged at 10 and never answers; what is done by ``until``."""
    made = serving(1, **PINGED)
    assert sampled(made, 10, w1=sample) == [Ping(1)]
    done: list[Action] = []
    while made.next_wake is not None and made.next_wake <= until:
        now = made.next_wake
        done += sampled(made, now, w1=sample._replace(pong_age=now))
    return done


def test_every_worker_is_pinged_in_every_interval() -> None:
    made = serving(2, **PINGED)
    assert made.next_wake == 10
    assert sampled(made, 10, w1=IDLE, w2=IDLE) == [Ping(1), Ping(2)]
    assert made.next_wake == 20
    assert sampled(made, 20, w1=IDLE, w2=IDLE._replace(pong_age=20)) == [Ping(1)]


def test_a_worker_that_is_stopped_is_killed_after_two_intervals() -> None:
    stopped = BUSY._replace(stopped=True)
    assert unanswered(stopped, 29) == []
    assert unanswered(stopped, 31) == [Kill(1, "stopped, and no answer for 20.0 s", Cause.UNRESPONSIVE)]


def test_an_idle_worker_that_does_nothing_is_killed_after_two_intervals() -> None:
    assert unanswered(IDLE, 29) == []
    assert unanswered(IDLE, 31) == [
        Kill(1, "no answer for 20.0 s, idle, without using the processor", Cause.UNRESPONSIVE)
    ]


def test_a_worker_that_does_nothing_within_a_call_is_killed_after_three() -> None:
    assert unanswered(BUSY, 39) == []
    assert unanswered(BUSY, 41) == [
        Kill(1, "no answer for 30.0 s, in a call, without using the processor", Cause.UNRESPONSIVE)
    ]


@pytest.mark.parametrize("sample", [IDLE, BUSY])
def test_a_worker_that_burns_the_processor_is_left_alone(sample: Sample) -> None:
    made = serving(1, **PINGED)
    sampled(made, 10, w1=sample)
    for now in range(20, 2000, 10):
        assert sampled(made, now, w1=sample._replace(pong_age=now, cpu_seconds=float(now))) == []


def test_an_answer_begins_anew() -> None:
    made = serving(1, **PINGED)
    for now in range(10, 500, 20):
        assert sampled(made, now, w1=BUSY) == [Ping(1)]
        assert sampled(made, now + 10, w1=BUSY._replace(pong_age=10, stopped=True)) == []


def test_a_killed_worker_is_replaced_when_it_is_gone() -> None:
    made = serving(1, **PINGED)
    for now in (10, 20, 30):
        done = sampled(made, now, w1=IDLE._replace(pong_age=None if now == 10 else now))
    assert [type(one) for one in done] == [Kill]
    assert made.tick(31) == []
    assert made.ended(1, 31, Cause.UNRESPONSIVE, "no answer") == [Start(2, restart=True)]


def test_a_host_that_itself_did_not_run_judges_nobody() -> None:
    made = serving(1, **PINGED)
    sampled(made, 10, w1=IDLE)
    stale = IDLE._replace(pong_age=300)
    assert sampled(made, 310, w1=stale) == []
    assert sampled(made, 320, w1=stale) == []
    assert [type(one) for one in sampled(made, 330, w1=stale)] == [Kill]


def test_without_an_interval_nobody_is_pinged() -> None:
    made = serving(1)
    assert made.next_wake is None
    assert sampled(made, 1000, w1=IDLE._replace(stopped=True)) == []


# --- closing


def test_closing_retires_all_and_starts_nothing_again() -> None:
    made = serving(2, minimum=2, maximum=3)
    made.wanted(1, 1)
    assert made.close(2) == [
        Retire(1, "the pool is closed"),
        Retire(2, "the pool is closed"),
        Kill(3, "the pool is closed", Cause.RETIRED),
    ]
    assert made.close(2) == []
    assert made.ready(3, 2, 0) == []
    assert made.ended(1, 3, Cause.CRASHED, "") == []
    assert made.wanted(3, 5) == []
    assert made.reload(3) == []
    assert made.scale(3, 5, 5) == []
    assert made.tick(100) == []
    assert made.next_wake is None
    assert made.refusal(4) == Refusal("the pool is closed", None)


# --- late and impossible reports


def test_reports_of_a_worker_that_is_gone_change_nothing() -> None:
    made = serving(1)
    made.ended(1, 1, Cause.CRASHED, "")
    assert made.ended(1, 2, Cause.CRASHED, "") == []
    assert made.failed(1, 2, "") == []
    assert made.ready(1, 2, 0) == []
    assert made.succeeded(1, 2) == []
    assert made.sampled(1, 2, IDLE) == []
    assert made.workers == {2: WorkerState.STARTING}


@pytest.mark.parametrize("worker", [0, 2, -1])
def test_a_worker_that_never_was(worker: int) -> None:
    with pytest.raises(ValueError, match=f"worker {worker}: there never was one"):
        serving(1).ended(worker, 1, Cause.CRASHED, "")


# --- the tables


def test_every_state_is_reached_and_every_event_used() -> None:
    assert {before for before, _ in WORKER_TRANSITIONS} == set(WorkerState) - {WorkerState.GONE}
    assert set(WORKER_TRANSITIONS.values()) == set(WorkerState) - {WorkerState.STARTING}
    assert {event for _, event in WORKER_TRANSITIONS} == set(WorkerEvent)
    assert set(POOL_TRANSITIONS.values()) == set(PoolState) - {PoolState.NEW}
    assert {event for _, event in POOL_TRANSITIONS} == set(PoolEvent)
    assert all(POOL_TRANSITIONS[state, PoolEvent.CLOSE] is PoolState.CLOSED for state in PoolState)


# --- random lives


class Lives(RuleBasedStateMachine):
    """A supervisor that does what it is told, and a world in which anything may happen to a worker at any time."""

    @initialize(
        minimum=st.integers(0, 3),
        more=st.integers(0, 3),
        max_restarts=st.integers(0, 3),
        failures=st.integers(1, 5),
        health=st.sampled_from([None, 1.0, 3.3]),
        recycle=st.sampled_from([Recycle(), Recycle(calls=3), Recycle(age=7), Recycle(memory_growth=50, age=20)]),
        draw=st.sampled_from([0.0, 0.3, 0.999]),
    )
    def begin(
        self,
        minimum: int,
        more: int,
        max_restarts: int,
        failures: int,
        health: float | None,
        recycle: Recycle,
        draw: float,
    ) -> None:
        self.minimum, self.maximum = minimum, max(1, minimum + more)
        self.restart = Restart(backoff=0.3, backoff_max=4, max_restarts=max_restarts, window=20)
        self.policy = policy(
            self.minimum,
            self.maximum,
            restart=self.restart,
            breaker=Breaker(failures=failures, cooldown=2),
            recycle=recycle,
            health_interval=health,
            idle_timeout=5,
            draw=draw,
        )
        self.now = 1000.0
        self.alive: dict[int, str] = {}  # worker -> starting, ready, retiring, ending
        self.retired: dict[int, float] = {}  # when each was let go
        self.new = True
        self.closed = False
        self.most = self.maximum  # the largest maximum whose workers may still be there
        self.until = 0.0
        self.replaced: dict[int, int] = {}  # new -> old
        self.restarts: list[float] = []  # since the breaker last closed
        self.samples: dict[int, Sample] = {}

    def do(self, actions: list[Action]) -> None:
        opened = self.policy.state is PoolState.OPEN
        for action in actions:
            match action:
                case Start(worker, replaces, restart):
                    assert not self.closed
                    assert not self.new
                    assert not opened
                    assert worker not in self.alive
                    assert replaces is None or self.alive[replaces] == "ready"
                    self.alive[worker] = "starting"
                    if replaces is not None:
                        self.replaced[worker] = replaces
                    if restart and self.policy.state is PoolState.RUNNING:
                        self.restarts.append(self.now)
                case Retire(worker, why):
                    assert self.alive[worker] == "ready"
                    assert why
                    self.alive[worker] = "retiring"
                    self.retired[worker] = self.now
                case Kill(worker, why, _):
                    assert self.alive[worker] != "ending"
                    assert why
                    self.alive[worker] = "ending"
                case Ping(worker):
                    assert not self.closed
                    assert self.alive[worker] in ("ready", "retiring")
                    self.samples[worker] = self.sample(worker)._replace(pong_age=0.0)
                case OpenBreaker(reason, until):
                    assert reason
                    assert until > self.now
                    assert self.policy.state is PoolState.OPEN
                    self.restarts.clear()
                    self.until = until
                case CloseBreaker():
                    assert self.policy.state is PoolState.RUNNING

    def sample(self, worker: int) -> Sample:
        return self.samples.get(worker, IDLE)

    def some(self, data: st.DataObject, *states: str) -> int | None:
        found = sorted(worker for worker, state in self.alive.items() if state in states)
        return data.draw(st.sampled_from(found)) if found else None

    def tick(self) -> list[Action]:
        for worker in self.alive:
            self.policy.sampled(worker, self.now, self.sample(worker))
        actions = self.policy.tick(self.now)
        self.do(actions)
        assert self.policy.next_wake is None or self.policy.next_wake > self.now, "a busy loop"
        return actions

    @rule(waiting=st.integers(0, 6))
    def want(self, waiting: int) -> None:
        self.new = False
        self.do(self.policy.wanted(self.now, waiting))

    @rule(data=st.data(), serves=st.booleans())
    def becomes_ready(self, data: st.DataObject, serves: bool) -> None:
        worker = self.some(data, "starting")
        if worker is not None:
            self.alive[worker] = "ready"
            self.do(self.policy.ready(worker, self.now, 100))
            if serves:
                self.do(self.policy.succeeded(worker, self.now))

    @rule(data=st.data())
    def serves(self, data: st.DataObject) -> None:
        worker = self.some(data, "ready", "retiring")
        if worker is not None:
            self.do(self.policy.succeeded(worker, self.now))

    @rule(data=st.data(), fatal=st.booleans())
    def fails_to_start(self, data: st.DataObject, fatal: bool) -> None:
        worker = self.some(data, "starting", "ending")
        if worker is not None:
            del self.alive[worker]
            self.do(self.policy.failed(worker, self.now, "no", fatal=fatal))

    @rule(data=st.data(), cause=st.sampled_from(Cause))
    def ends(self, data: st.DataObject, cause: Cause) -> None:
        worker = self.some(data, "starting", "ready", "retiring", "ending")
        if worker is not None:
            del self.alive[worker]
            self.do(self.policy.ended(worker, self.now, cause, "gone"))

    @rule(
        data=st.data(),
        calls=st.integers(0, 5),
        in_flight=st.integers(0, 1),
        rss=st.sampled_from([100, 200]),
        idle_for=st.floats(0, 10),
        stopped=st.booleans(),
        answers=st.booleans(),
        cpu=st.floats(0, 100),
    )
    def changes(
        self,
        data: st.DataObject,
        calls: int,
        in_flight: int,
        rss: int,
        idle_for: float,
        stopped: bool,
        answers: bool,
        cpu: float,
    ) -> None:
        worker = self.some(data, "ready", "retiring")
        if worker is not None:
            pong = None if answers else self.sample(worker).pong_age
            idle = 0.0 if in_flight else idle_for
            self.samples[worker] = Sample(calls, in_flight, rss, idle, cpu, stopped, pong)

    @rule(seconds=st.floats(0.001, 30))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(10_000):
            wake = self.policy.next_wake
            if wake is None or wake > until:
                break
            self.now = max(self.now, wake)
            self.tick()
        else:
            raise AssertionError("a busy loop")
        self.now = until

    @rule()
    def look(self) -> None:
        self.tick()

    @rule(minimum=st.integers(0, 3), more=st.integers(0, 3))
    def scale(self, minimum: int, more: int) -> None:
        self.minimum, self.maximum = minimum, max(1, minimum + more)
        self.most = max(self.maximum, len(self.alive))
        self.do(self.policy.scale(self.now, self.minimum, self.maximum))

    @rule()
    def reload(self) -> None:
        self.do(self.policy.reload(self.now))

    @precondition(lambda self: not self.closed)
    @rule(really=st.integers(0, 9))
    def close(self, really: int) -> None:
        if really == 0:
            self.closed = True
            self.do(self.policy.close(self.now))
            assert set(self.alive.values()) <= {"retiring", "ending"}

    @precondition(lambda self: not self.closed and not self.new)
    @rule()
    def all_is_well_for_a_while(self) -> None:
        """However bad it was, the minimum is there again once starts succeed and somebody asks."""
        for _ in range(100):
            self.do(self.policy.wanted(self.now, 1))
            for worker, state in sorted(self.alive.items()):
                if state == "starting":
                    self.alive[worker] = "ready"
                    self.do(self.policy.ready(worker, self.now, 100))
                    self.do(self.policy.succeeded(worker, self.now))
                elif state in ("retiring", "ending"):
                    del self.alive[worker]
                    self.do(self.policy.ended(worker, self.now, Cause.RETIRED, ""))
            self.samples = dict.fromkeys(self.alive, IDLE)
            self.now += 2
            self.tick()
        serving = [worker for worker, state in self.alive.items() if state == "ready"]
        assert len(serving) >= max(1, self.minimum)
        assert self.policy.state in (PoolState.RUNNING, PoolState.HALF_OPEN)
        if self.policy.state is PoolState.HALF_OPEN:
            assert self.policy.refusal(self.now) is None

    @invariant()
    def both_know_the_same_workers(self) -> None:
        if hasattr(self, "policy"):
            assert {worker: str(state) for worker, state in self.policy.workers.items()} == self.alive

    @invariant()
    def never_too_many(self) -> None:
        if hasattr(self, "policy"):
            lingering = [one for one in self.alive if self.now >= self.retired.get(one, self.now) + _DRAIN]
            assert len(self.alive) - len(lingering) <= max(self.most, self.maximum) + 1

    @invariant()
    def no_more_than_wanted(self) -> None:
        if hasattr(self, "policy"):
            there = {worker for worker, state in self.alive.items() if state in ("starting", "ready")}
            pairs = sum(new in there and old in there for new, old in self.replaced.items())
            assert pairs <= 1
            assert len(there) - pairs <= self.maximum

    @invariant()
    def restarts_are_bounded(self) -> None:
        if hasattr(self, "policy"):
            recent = [when for when in self.restarts if when > self.now - self.restart.window]
            assert len(recent) <= self.restart.max_restarts * max(self.most, 6)

    @invariant()
    def while_open_callers_are_refused_unless_a_worker_is_ready(self) -> None:
        if hasattr(self, "policy") and self.policy.state is PoolState.OPEN and self.now < self.until:
            refusal = self.policy.refusal(self.now)
            assert (refusal is None) == ("ready" in self.alive.values())
            assert refusal is None or refusal.retry_in == self.until - self.now


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_the_states_can_be_asked_for_while_workers_come_and_go() -> None:
    """By another thread: here the policy hears of an end between any two steps of it."""
    for moment in range(1, 1000):
        made = serving(3)
        steps = itertools.count(1)
        struck: list[int] = []

        def strike(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_code.co_filename != policy_file:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and next(steps) == moment:  # noqa: B023
                struck.append(moment)  # noqa: B023
                sys.settrace(None)
                made.ended(2, 1, Cause.CRASHED, "killed")  # noqa: B023
            return strike

        before = sys.gettrace()
        sys.settrace(strike)
        try:
            found = made.workers
        finally:
            sys.settrace(before)
        assert found.keys() in ({1, 2, 3}, {1, 3, 4})
        if not struck:
            return
    raise AssertionError("it has no end")
