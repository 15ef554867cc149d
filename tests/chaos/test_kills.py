# SPDX-License-Identifier: Apache-2.0
"""Workers end at any moment, in every way, under callers of every kind: each call gets its own answer or
``WorkerDied``; none hangs, and afterwards the pool is as good as new."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool.lifecycle import Cause, Kill
from atoll.processes import warden
from conditions import until, until_gone
from storm import PATIENCE, SECONDS, TIRELESS, Storm, check_healthy, ready_pids, seconds, torment

Oracle = Callable[..., atoll.Service]

WORKERS = 3

pytestmark = pytest.mark.timeout(SECONDS + 120)


def answered(question: int) -> tuple[int, bytes]:
    return question, bytes(300_000) if question % 5 == 2 else b""


def calm(service: atoll.Service, workers: int = WORKERS) -> None:
    check_healthy(service, service.answer, workers, answered)


def kill_until(service: atoll.Service, storm: Storm, raised: str, for_seconds: float, every: float = 0.05) -> None:
    """Kill workers for so long, and on until a call was hit by that: which is chance, and so is how many calls there
    were on a busy machine."""
    torment(service, signal.SIGKILL, for_seconds, every)

    def was_hit() -> bool:
        return bool(storm.wrong or (storm.right and storm.raised[raised]))

    until(lambda: was_hit() or torment(service, signal.SIGKILL, 0.3, every) < 0)


@pytest.mark.stress
def test_a_worker_killed_every_50_ms(oracle: Oracle) -> None:
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()
    with Storm(service.answer, expected=answered).around() as storm:
        killed = torment(service, signal.SIGKILL, SECONDS)
        kill_until(service, storm, "WorkerDied", 0)
    assert killed > 5  # it would be 20 a second, and is fewer on a busy machine
    calm(service)


@pytest.mark.stress
def test_a_worker_stopped_again_and_again(oracle: Oracle) -> None:
    """SIGSTOP: the health check finds it, since the worker neither answers nor ends."""
    service = oracle(workers=WORKERS, health_interval=1, **TIRELESS)
    service.start()
    with Storm(service.answer, expected=answered).around() as storm:
        stopped = torment(service, signal.SIGSTOP, seconds(12), every=0.5)
    assert stopped > 0
    assert storm.right
    until(lambda: service.status().restarts > 0)  # whether one was in a call just then is chance
    calm(service)


@pytest.mark.parametrize("how", ["exit", "segfault", "abort"])
def test_calls_that_end_their_worker(oracle: Oracle, how: str) -> None:
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()
    deaths = itertools.count()

    def ask(question: int) -> Any:
        if question % 50 == 10:
            next(deaths)
            return service.die(question, how)
        return service.answer(question)

    pause = threading.Event()
    with Storm(ask, expected=answered).around() as storm:
        pause.wait(seconds(4))
        until(lambda: storm.wrong or storm.raised["WorkerDied"])
    assert 0 < next(deaths) <= storm.raised["WorkerDied"]
    calm(service)


def test_several_calls_of_a_worker_at_a_time(oracle: Oracle) -> None:
    service = oracle(workers=2, concurrency=4, **TIRELESS)
    service.start()
    with Storm(service.answer, expected=answered).around() as storm:
        kill_until(service, storm, "WorkerDied", seconds(6))
    calm(service, 2)


def test_callbacks_under_kills(oracle: Oracle) -> None:
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()

    def ask(question: int) -> Any:
        return service.ask_back(question, lambda number: number + 1)

    with Storm(ask, expected=lambda question: 5 * question + 15).around() as storm:
        kill_until(service, storm, "WorkerDied", seconds(6))
    calm(service)


def test_streams_under_kills(oracle: Oracle) -> None:
    """Both directions: what a stream gave before its worker died was right, and in order."""
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()

    def ask(question: int) -> Any:
        if question % 3 == 0:
            return service.total(iter(range(200))) == 19900
        taken = []
        with service.count(question, 300) as stream:
            for item in stream:
                taken.append(item)
                if question % 3 == 1 and len(taken) == 20:
                    break
        assert taken == [question + number for number in range(len(taken))]
        return len(taken) == (20 if question % 3 == 1 else 300)

    with Storm(ask, expected=lambda question: True).around() as storm:
        kill_until(service, storm, "WorkerDied", seconds(6))
    calm(service)


def test_map_under_kills(oracle: Oracle) -> None:
    """With retries, which an idempotent function may have, nobody notices."""
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()
    again = service.answer_again.options(retries=1000)

    def ask(question: int) -> Any:
        items = range(question, question + 40)
        return (
            list(again.map(items, ordered=question % 2 == 0))
            if question % 2 == 0
            else sorted(again.map(items, ordered=False))
        )

    with Storm(ask, expected=lambda question: [*range(question, question + 40)], callers=3, allowed=()).around():
        torment(service, signal.SIGKILL, seconds(6), every=0.15)
    calm(service)


def test_retries_under_kills(oracle: Oracle) -> None:
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()
    with Storm(service.answer_again.options(retries=1000), allowed=()).around():
        torment(service, signal.SIGKILL, seconds(5), every=0.1)
    calm(service)


def test_cancellations_under_kills(oracle: Oracle) -> None:
    """Every call is given up, or its worker is killed, or both at once."""
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()

    def ask(question: int) -> Any:
        call = service.spin.submit(question, 0.02)
        if question % 2:
            try:
                return call.result(0.005)
            except TimeoutError:
                call.cancel()
        return call.result(60)

    allowed = (atoll.WorkerDied, atoll.CallCancelled)
    with Storm(ask, allowed=allowed).around() as storm:
        kill_until(service, storm, "CallCancelled", seconds(6), every=0.1)
    calm(service)


def test_deadlines_under_kills(oracle: Oracle) -> None:
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()
    spin = service.spin.options(timeout=0.05)

    def ask(question: int) -> Any:
        return spin(question, 0.2 if question % 10 == 0 else 0.001)

    with Storm(ask, callers=4, allowed=(atoll.WorkerDied, atoll.CallTimeout)).around() as storm:
        kill_until(service, storm, "CallTimeout", seconds(6), every=0.2)
    calm(service)


def test_async_callers_under_kills(oracle: Oracle) -> None:
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()

    async def ask(question: int) -> Any:
        if question % 4 == 3:
            total = 0
            async for item in service.count.aio(question, 30):
                total += item - question
            return question if total == 435 else total
        if question % 4 == 2:
            try:
                return await asyncio.wait_for(service.spin.aio(question, 0.02), 0.005)
            except TimeoutError:
                return question
        return await service.answer_later.aio(question)

    with Storm(ask_async=ask).around() as storm:
        kill_until(service, storm, "WorkerDied", seconds(6), every=0.1)
    calm(service)


def test_reload_under_kills(oracle: Oracle) -> None:
    service = oracle(workers=WORKERS, **TIRELESS)
    service.start()
    over = threading.Event()
    reloads: list[BaseException | None] = []

    def reload() -> None:
        while not over.is_set():
            try:
                service.reload(timeout=60)
                reloads.append(None)
            except atoll.WorkerDied as error:
                reloads.append(error)

    thread = threading.Thread(target=reload)
    try:
        with Storm(service.answer, expected=answered).around():
            thread.start()
            torment(service, signal.SIGKILL, seconds(6), every=0.15)
    finally:
        over.set()
        thread.join(90)
    assert not thread.is_alive()
    assert None in reloads
    calm(service)


def test_scaling_under_kills(oracle: Oracle) -> None:
    service = oracle(workers=1, **TIRELESS)
    service.start()
    with Storm(service.answer, expected=answered).around() as storm:
        deadline = time.monotonic() + seconds(6)
        for bounds in itertools.cycle([(0, 4), (2, 2), (1, 3), (4, 4), (0, 1)]):
            if time.monotonic() > deadline:
                break
            service.scale(*bounds, idle=0.05)
            torment(service, signal.SIGKILL, 0.3, every=0.1)
    assert storm.right
    service.scale(2, 2)
    service.start()
    calm(service, 2)


def test_who_waits_is_not_told_that_the_pool_ended_a_worker_that_started(tmp_path: Path) -> None:
    """Since it had no place for it, as when it is scaled down: another one serves them."""
    file, gate = tmp_path / "slow.py", tmp_path / "gate"
    file.write_text(
        "import os, time\nfrom atoll_worker import expose\n"
        f"while not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\n"
        "@expose\ndef answer(question):\n    return question\n"
    )
    service = atoll.Service(file, **TIRELESS)
    try:
        call = service.answer.submit(5)
        supervisor = service._pool.supervisor
        worker = until(lambda: next((one for one in supervisor.workers if one.process is not None), None))
        ended = worker.process.pid
        warden().run(lambda: supervisor._do([Kill(worker.number, "the pool is scaled down", Cause.RETIRED)]))
        until_gone(ended)
        gate.touch()
        assert call.result(PATIENCE) == 5
    finally:
        service.close()


def test_a_reload_fails_no_call(oracle: Oracle) -> None:
    """Nobody is killed here, so nothing may be raised."""
    service = oracle(workers=2, **TIRELESS)
    service.start()
    before = set(ready_pids(service))
    with Storm(service.answer, expected=answered, allowed=()).around():
        for _ in range(4):
            service.reload(timeout=30)
    assert not before & set(ready_pids(service))
    calm(service, 2)


def test_a_crash_loop(oracle: Oracle) -> None:
    """The breaker opens; callers fail fast, with the reason; one worker is tried, and when it serves, all is well."""
    service = oracle(
        workers=1,
        restart=atoll.Restart(backoff=0, max_restarts=1000),
        breaker=atoll.Breaker(failures=3, cooldown=0.5),
    )
    service.start()
    refused: atoll.CircuitOpen | None = None
    for _ in range(200):
        try:
            service.die(0, "exit")
        except atoll.WorkerDied:
            continue
        except atoll.CircuitOpen as error:
            refused = error
            break
    assert refused is not None
    assert "exited with code 7" in str(refused)
    assert service.status().state in ("open", "half-open")
    answers: list[Any] = []
    deadline = time.monotonic() + 20
    while not answers and time.monotonic() < deadline:
        try:
            answers.append(service.answer(5))
        except atoll.CircuitOpen as error:
            threading.Event().wait(min(error.retry_in or 0.0, 0.1))
    assert answers == [(5, b"")]
    calm(service, 1)
