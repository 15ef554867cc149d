# SPDX-License-Identifier: Apache-2.0
"""``concurrency=n``: calls of one worker side by side on threads; what ends one of them leaves the others alone."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool import escalation
from client.rungs import not_before
from conditions import WITHIN, is_gone, until

Write = Callable[[str, str], Path]

SERVICE = """\
import itertools
import os
import threading
import time

from atoll_worker import Cancelled, expose, host, progress

barriers = {}
lock = threading.Lock()
struck = []

@expose
def meet(n):
    "Returns once n calls are in here."
    with lock:
        barrier = barriers.setdefault(n, threading.Barrier(n))
    barrier.wait(60)
    return os.getpid(), threading.get_ident()

@expose
def echo(x):
    return x

@expose
def work(x, rounds):
    for _ in range(rounds):
        x + 1
    return x

@expose
def apply(f, x):
    return f(x)

@expose
def hold(begun, gate):
    open(begun, "w").close()
    while not os.path.exists(gate):
        time.sleep(0.001)
    return os.getpid()

@expose
def spin(begun):
    open(begun, "w").close()
    while True:
        pass

@expose
def native(begun):
    "Holds the interpreter's lock, in C, from before the file is there."
    sum(itertools.chain(filter(None, map(os.mknod, [begun])), itertools.repeat(1)))

@expose
def report(n, x):
    for i in range(n):
        progress(i, total=x)
    return x

@expose
def pid():
    return os.getpid()

@expose
def threads():
    return [thread.name for thread in threading.enumerate()]
"""


@pytest.fixture
def service(write: Write) -> Iterator[atoll.Service]:
    with atoll.Service(write("side.py", SERVICE), concurrency=4) as service:
        yield service


def in_threads(count: int, run: Callable[[int], Any]) -> list[Any]:
    """What ``run(i)`` returned for each i, or raised."""
    found: dict[int, Any] = {}

    def one(i: int) -> None:
        try:
            found[i] = run(i)
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    return [found.get(i) for i in range(count)]


def test_they_overlap_on_threads(service: atoll.Service) -> None:
    found = in_threads(4, lambda i: service.meet(4))
    assert len({pid for pid, _ in found}) == 1
    assert len({thread for _, thread in found}) == 4


def test_the_worker_with_the_fewest_calls_is_next(write: Write, tmp_path: Path) -> None:
    with atoll.Service(write("side.py", SERVICE), workers=2, concurrency=2) as service:
        service.start()
        gate = tmp_path / "gate"
        calls = []
        for i in range(4):
            begun = tmp_path / f"begun{i}"
            calls.append(service.hold.submit(str(begun), str(gate)))
            until(begun.exists)
            if i % 2:
                counts = [worker.in_flight for worker in service.status().workers]
                assert counts == [(i + 1) // 2] * 2
        gate.touch()
        pids = [call.result(WITHIN) for call in calls]
        assert sorted(pids.count(pid) for pid in set(pids)) == [2, 2]


def test_callbacks_from_all_of_them(service: atoll.Service) -> None:
    barrier = threading.Barrier(4)

    def callback(x: int) -> int:
        barrier.wait(WITHIN)
        return service.echo(x) + 100  # type: ignore[no-any-return]

    assert in_threads(4, lambda i: service.apply(callback, i)) == [100, 101, 102, 103]
    assert service.apply(lambda x: -x, 3) == -3


def test_progress_arrives_at_its_own_call(service: atoll.Service) -> None:
    def run(i: int) -> Any:
        seen: list[Any] = []
        function = service.report.options(on_progress=lambda done, total, message: seen.append((done, total)))
        assert function(50, i) == i
        return seen == [(done, i) for done in range(50)]

    assert in_threads(4, run) == [True] * 4


@pytest.mark.usefixtures("unhurried")
def test_a_timeout_of_one_does_not_disturb_the_others(
    service: atoll.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = service.call("pid")
    gate = tmp_path / "gate"
    begun = [tmp_path / f"begun{i}" for i in range(2)]
    calls = [service.hold.submit(str(path), str(gate)) for path in begun]
    for path in begun:
        until(path.exists)
    spinning = tmp_path / "spinning"
    not_before(monkeypatch, spinning.exists)
    with pytest.raises(atoll.CallTimeout) as late:
        service.spin.options(timeout=0.2)(str(spinning))
    assert late.value.rung == "exception"
    assert service.echo(1) == 1
    gate.touch()
    assert [call.result(WITHIN) for call in calls] == [pid, pid]


def test_a_worker_that_is_being_ended_gets_no_further_calls(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take them with it. Here it is given much time, and does not mind being told to end."""
    monkeypatch.setattr(escalation, "_TERMINATION", WITHIN)
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVICE
    with atoll.Service(write("deaf.py", deaf), workers=2, concurrency=2) as service:
        service.start()
        begun = tmp_path / "begun"
        call = service.native.submit(str(begun))
        until(begun.exists)
        doomed = next(worker.pid for worker in service.status().workers if worker.in_flight)
        call.cancel()
        until(lambda: doomed not in [worker.pid for worker in service._pool.dispatcher.workers])
        assert not is_gone(doomed)
        assert doomed not in [service.call("pid") for _ in range(20)]
        assert doomed not in in_threads(4, lambda _: service.call("pid"))
        os.kill(doomed, signal.SIGKILL)
        with pytest.raises(atoll.CallCancelled) as cancelled:
            call.result(WITHIN)
        assert cancelled.value.rung == "SIGTERM"


def test_nothing_is_left_of_them(write: Write) -> None:
    with atoll.Service(write("side.py", SERVICE), concurrency=3) as service:
        names = service.threads()
        assert sum(name.startswith("atoll-call") for name in names) == 3
        in_threads(3, lambda i: service.apply(lambda x: x, i))
        assert len(service.threads()) == len(names)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 4])
def test_cancelling_at_random_strikes_nobody_else(write: Write, concurrency: int) -> None:
    """Tiny calls, given up at any moment: each answers rightly, or says that it was given up."""
    with atoll.Service(write("side.py", SERVICE), concurrency=concurrency) as service:
        service.start()
        pid = service.call("pid")
        until_time = time.monotonic() + 8
        given_up = threading.Lock()
        counts = {"answered": 0, "cancelled": 0, "late": 0}

        def submit(i: int) -> None:
            choose = random.Random(i)
            while time.monotonic() < until_time:
                x = choose.random()
                call = service.work.submit(x, choose.choice((0, 10, 1000, 20000)))
                for _ in range(choose.randrange(300)):
                    pass
                call.cancel()
                try:
                    answer = call.result(60)
                except CancelledError:  # and CallCancelled, which is one
                    with given_up:
                        counts["cancelled"] += 1
                else:
                    assert answer == x
                    with given_up:
                        counts["answered"] += 1

        def expect(i: int) -> None:
            choose = random.Random(i)
            while time.monotonic() < until_time:
                x = choose.random()
                assert service.echo(x) == x
                assert service.apply(lambda y: y + 1, x) == x + 1

        def late(i: int) -> None:
            choose = random.Random(i)
            while time.monotonic() < until_time:
                x = choose.random()
                try:
                    answer = service.work.options(timeout=choose.choice((0.0001, 0.001, 0.01)))(x, 100_000)
                except atoll.CallTimeout:
                    with given_up:
                        counts["late"] += 1
                else:
                    assert answer == x

        runs = [submit, expect, late, submit]
        assert in_threads(4, lambda i: runs[i](i)) == [None] * 4
        assert counts["cancelled"] > 10
        assert counts["late"] > 10
        assert service.call("pid") == pid
