# SPDX-License-Identifier: Apache-2.0
"""``async def`` functions: run to their end on the worker's one event loop, several at a time with ``concurrency``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import atoll
from client.rungs import ends_at, not_before
from conditions import until

Write = Callable[[str, str], Path]
Run = Callable[[Coroutine[Any, Any, Any]], Any]

SERVICE = """\
import asyncio
import contextvars
import os
import threading

from atoll_worker import Cancelled, Service, cancelled, expose, host

variable = contextvars.ContextVar("variable", default=0)
loops = set()
arrived = None
log = []

@expose
async def double(x):
    await asyncio.sleep(0)
    return 2 * x

@expose
async def where():
    loop = asyncio.get_running_loop()
    loops.add(id(loop))
    return len(loops), threading.current_thread() is threading.main_thread()

@expose
async def meet(n):
    "Returns once n calls are in here."
    global arrived
    if arrived is None:
        arrived = [0, asyncio.Event()]
    arrived[0] += 1
    if arrived[0] == n:
        arrived[1].set()
    await arrived[1].wait()
    return arrived[0]

@expose
async def fail():
    await asyncio.sleep(0)
    raise KeyError("async")

tasks = []

@expose
async def leave_task(path, seconds):
    async def write():
        await asyncio.sleep(seconds)
        open(path, "w").close()
    tasks.append(asyncio.create_task(write()))

@expose
async def set_variable(x):
    before = variable.get()
    variable.set(x)
    await asyncio.sleep(0)
    return before, variable.get()

@expose
async def wait(path):
    open(path, "w").close()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        log.append("cancelled")
        raise
    finally:
        await asyncio.sleep(0)
        log.append("finally")

@expose
async def stubborn(path):
    open(path, "w").close()
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("ignored")

@expose
async def busy(path):
    "Never comes back to the loop."
    open(path, "w").close()
    while True:
        pass

@expose
async def raises_cancelled():
    raise asyncio.CancelledError("mine")

@expose
def plain():
    return threading.current_thread() is threading.main_thread()

@expose
def taken():
    found = log[:]
    log.clear()
    return found

@expose
def pid():
    return os.getpid()
"""


@pytest.mark.parametrize("concurrency", [1, 3])
def test_they_return_what_they_come_to(write: Write, run: Run, concurrency: int) -> None:
    with atoll.Service(write("s.py", SERVICE), concurrency=concurrency) as service:
        assert service.double(2) == 4
        assert [service.where()[0] for _ in range(5)] == [1] * 5  # always the same loop
        assert service.where()[1] is True
        assert list(service.double.map(range(50))) == [2 * x for x in range(50)]
        with pytest.raises(KeyError, match="async"):
            service.fail()
        with pytest.raises(atoll.RemoteError):
            service.raises_cancelled()
        assert service.plain() is (concurrency == 1)

        async def main() -> None:
            assert await asyncio.gather(*[service.double.aio(i) for i in range(20)]) == [2 * i for i in range(20)]
            with pytest.raises(KeyError):
                await service.fail.aio()

        run(main())


def test_calls_overlap_on_one_loop(write: Write, run: Run) -> None:
    with atoll.Service(write("s.py", SERVICE), concurrency=4) as service:

        async def main() -> None:
            # None returns before all four are there.
            assert await asyncio.gather(*[service.meet.aio(4) for _ in range(4)]) == [4] * 4
            assert await service.where.aio() == (1, True)

        run(main())


def test_calls_from_threads_overlap_on_one_loop(write: Write) -> None:
    with atoll.Service(write("s.py", SERVICE), concurrency=4) as service:
        calls = [service.meet.submit(4) for _ in range(4)]
        assert [call.result(30) for call in calls] == [4] * 4


@pytest.mark.parametrize("concurrency", [1, 2])
def test_tasks_go_on_between_calls(write: Write, tmp_path: Path, concurrency: int) -> None:
    with atoll.Service(write("s.py", SERVICE), concurrency=concurrency) as service:
        for i, seconds in enumerate((0.0, 0.05)):
            path = tmp_path / str(i)
            service.leave_task(str(path), seconds)
            until(path.exists)  # no other call is made
        assert service.double(1) == 2


def test_tasks_do_not_keep_the_worker_from_ending(write: Write, tmp_path: Path) -> None:
    with atoll.Service(write("s.py", SERVICE)) as service:
        service.leave_task(str(tmp_path / "never"), 3600)
        assert service.double(1) == 2
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("concurrency", [1, 2])
def test_context_variables_are_the_calls_own(write: Write, concurrency: int) -> None:
    with atoll.Service(write("s.py", SERVICE), concurrency=concurrency) as service:
        assert service.set_variable(1) == (0, 1)
        assert service.set_variable(2) == (0, 2)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("how", ["task", "submit", "timeout"])
def test_a_call_that_is_given_up_is_cancelled_over_there(
    write: Write, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int, how: str
) -> None:
    begun = tmp_path / "begun"
    not_before(monkeypatch, begun.exists)
    with atoll.Service(write("s.py", SERVICE), concurrency=concurrency) as service:
        pid = service.call("pid")
        if how == "task":

            async def main() -> None:
                task = asyncio.create_task(service.wait.aio(str(begun)))
                await asyncio.to_thread(until, begun.exists)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

            run(main())
        elif how == "submit":
            call = service.wait.submit(str(begun))
            until(begun.exists)
            assert call.cancel()
            with pytest.raises(atoll.CallCancelled) as cancelled:
                call.result(30)
            assert cancelled.value.rung in ("cooperative", "exception")
        else:
            with pytest.raises(atoll.CallTimeout) as late:
                service.wait.options(timeout=0.3)(str(begun))
            assert late.value.rung in ("cooperative", "exception")
        found: list[str] = []
        until(lambda: found.extend(service.taken()) or "finally" in found)
        assert found == ["cancelled", "finally"]
        assert service.call("pid") == pid


def test_what_ignores_that_is_stopped(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_at(monkeypatch, "exception")
    not_before(monkeypatch, (tmp_path / "a").exists)
    with atoll.Service(write("s.py", SERVICE)) as service:
        pid = service.call("pid")
        with pytest.raises(atoll.CallTimeout) as late:
            service.busy.options(timeout=0.2)(str(tmp_path / "a"))
        assert late.value.rung == "exception"  # the second time, whatever runs is interrupted
        assert service.call("pid") == pid
        ends_at(monkeypatch, "SIGTERM")
        with pytest.raises(atoll.CallTimeout) as late:
            service.stubborn.options(timeout=0.2)(str(tmp_path / "b"))
        assert late.value.rung is not None
        assert service.double(2) == 4
