# SPDX-License-Identifier: Apache-2.0
"""A call whose worker was gone before it took it goes to another worker; one that was taken is never made twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest

import atoll
from conditions import WITHIN, state_of, until, until_gone

Write = Callable[[str, str], Path]

SERVICE = """\
import os, time
from atoll_worker import expose

@expose
def whoami():
    return os.getpid()

@expose
def note(path, word):
    with open(path, "a") as file:
        file.write(f"{word}\\n")
    return os.getpid(), len(word)

@expose
def total(numbers):
    return sum(numbers)

@expose
def fill(value, out=None):
    out[:] = value
    return out

@expose
def count(number):
    yield from range(number)

@expose
def ask(path, question):
    with open(path, "a") as file:
        file.write("asked\\n")
    return question()
"""

FOREVER = atoll.Restart(backoff=0.0, max_restarts=10_000)
NEVER_OPEN = atoll.Breaker(failures=10_000)


@pytest.fixture(params=["1", "0"], ids=["lane", "socket"])
def service(write: Write, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[atoll.Service]:
    monkeypatch.setenv("ATOLL_LANE", request.param)
    path = write("frail.py", SERVICE)
    with atoll.Service(path, name="frail", restart=FOREVER, breaker=NEVER_OPEN, health_interval=None) as service:
        service.start()
        yield service


def flag_is_up(service: atoll.Service) -> bool:
    """Whether the one worker is asleep until the next call."""
    worker = service._pool.supervisor.workers[0]
    lane = worker.process.connections[0].lane
    return lane is None or bool(lane.words[lane.peer_asleep_word])


def stop(service: atoll.Service, pid: int) -> None:
    """Stop the one worker while it sleeps."""
    while True:
        until(lambda: flag_is_up(service) and state_of(pid) == "S")
        os.kill(pid, signal.SIGSTOP)
        until(lambda: state_of(pid) == "T")
        if flag_is_up(service):
            return
        # It looks up now and then, and just did.
        os.kill(pid, signal.SIGCONT)
        until(lambda: state_of(pid) != "T")


def kill_asleep(service: atoll.Service, pid: int) -> None:
    """Kill the one worker while it sleeps."""
    stop(service, pid)
    os.kill(pid, signal.SIGKILL)
    until_gone(pid)  # a zombie, maybe; its sockets are closed


@contextmanager
def stopped(service: atoll.Service) -> Iterator[int]:
    """The one worker is stopped while it sleeps; at the end it is killed, stopped as it is."""
    pid = service.whoami()
    stop(service, pid)
    yield pid
    until(lambda: service.status().in_flight)
    os.kill(pid, signal.SIGKILL)


def outcomes(service: atoll.Service) -> dict[str, int]:
    """How many calls ended in which way."""
    [durations] = [metric for metric in service.metrics() if metric.name == "atoll_call_duration_seconds"]
    found: dict[str, int] = {}
    for labels, distribution in durations.samples:
        found[labels["outcome"]] = found.get(labels["outcome"], 0) + distribution.total
    return found


CALLS: dict[str, Callable[[atoll.Service, Path], Any]] = {
    "plain": lambda service, path: service.note(str(path), "plain"),
    "options": lambda service, path: service.note.options(timeout=WITHIN)(str(path), "plain"),
    "submitted": lambda service, path: service.note.submit(str(path), "plain").result(WITHIN),
    "awaited": lambda service, path: asyncio.run(service.note.aio(str(path), "plain")),
    "mapped": lambda service, path: next(iter(service.note.map([str(path)], ["plain"]))),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_was_slept_through_goes_to_the_next_worker(
    service: atoll.Service, tmp_path: Path, call: str
) -> None:
    notes = tmp_path / "notes"
    with ThreadPoolExecutor() as pool:
        with stopped(service) as pid:
            answer = pool.submit(CALLS[call], service, notes)
        by, length = answer.result()
    assert notes.read_text() == "plain\n"
    assert (by != pid, length) == (True, 5)
    assert outcomes(service) == {"ok": 2}  # whoami, and this


def test_its_arguments_go_along(service: atoll.Service) -> None:
    """Also those that are lent, or can be read only once."""
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    out = numpy.zeros(200_000, "u1")
    calls: dict[Callable[[], Any], Any] = {
        lambda: service.total(numbers()): 45,
        lambda: service.fill(7, out=out) is not None: True,
        lambda: list(service.count(5)): list(range(5)),
        lambda: service.total(memoryview(bytes([1]) * 1_000_000)): 1_000_000,  # in a segment
    }
    for call, expected in calls.items():
        with ThreadPoolExecutor() as pool:
            with stopped(service):
                answer = pool.submit(call)
            assert answer.result() == expected
    assert taken == list(range(10))
    assert (out == 7).all()


@pytest.mark.parametrize("lane", ["1", "0"], ids=["lane", "socket"])
@pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "large"])
def test_workers_that_are_killed_while_idle_fail_no_call(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lane: str, size: int
) -> None:
    """Each call comes at once after the kill: nobody has seen the death yet."""
    monkeypatch.setenv("ATOLL_LANE", lane)
    notes = tmp_path / "notes"
    word = "x" * size
    path = write("frail.py", SERVICE)
    with atoll.Service(path, name="frail", restart=FOREVER, breaker=NEVER_OPEN) as service:
        for number in range(12):
            pid = service.whoami()
            kill_asleep(service, pid)
            by, length = service.note(str(notes), word) if number % 2 else asyncio.run(service.note.aio(notes, word))
            assert (by != pid, length) == (True, size)
        assert notes.stat().st_size == 12 * (size + 1)
        assert outcomes(service) == {"ok": 24}


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "large"])
def test_a_call_that_was_taken_is_made_once(service: atoll.Service, tmp_path: Path, size: int) -> None:
    """The worker sleeps until its question is answered, and is killed meanwhile."""
    notes = tmp_path / "notes"

    def answer() -> bytes:
        kill_asleep(service, service.status().workers[0].pid)
        return bytes(size)

    with pytest.raises(atoll.WorkerDied) as caught:
        service.ask(str(notes), answer)
    assert caught.value.taken
    assert notes.read_text() == "asked\n"
    assert outcomes(service) == {"died": 1}
    assert service.total([1, 2]) == 3


def test_what_needs_this_very_worker_says_that_it_was_not_taken(service: atoll.Service) -> None:
    numbers = iter(service.count(1_000_000))
    assert next(numbers) == 0
    kill_asleep(service, service.status().workers[0].pid)
    with pytest.raises(atoll.WorkerDied) as caught:
        list(numbers)
    assert not caught.value.taken
    assert service.total([1]) == 1


@pytest.mark.parametrize("way", ["called", "awaited"])
def test_it_keeps_its_place_though_the_queue_is_full(write: Write, tmp_path: Path, way: str) -> None:
    notes = tmp_path / "notes"
    path = write("frail.py", SERVICE)
    with (
        atoll.Service(path, name="frail", max_queue=1, restart=FOREVER, breaker=NEVER_OPEN) as service,
        ThreadPoolExecutor() as pool,
    ):
        service.start()

        def call(word: str) -> Any:
            return asyncio.run(service.note.aio(notes, word)) if way == "awaited" else service.note(str(notes), word)

        with stopped(service):
            first = pool.submit(call, "first")
            until(lambda: service.status().in_flight)
            second = pool.submit(call, "second")
            until(lambda: service.status().queue)
            with pytest.raises(atoll.QueueFull):
                call("third")
        assert first.result()[1] == 5
        assert second.result()[1] == 6
        assert sorted(notes.read_text().split()) == ["first", "second"]
