# SPDX-License-Identifier: Apache-2.0
"""The end of a function: closed, shut down, or dropped, its worker ends, calls say so; twice is nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool.supervisor import Supervisor
from atoll.processes import warden
from conditions import WITHIN, until, until_gone


def test_close_stops_the_worker_and_is_idempotent() -> None:
    @atoll.function
    def f() -> int:
        return 1

    f()
    pid = f.pid
    assert pid is not None
    f.close()
    until_gone(pid)
    f.close()
    assert f.pid is None
    assert f.local() == 1
    with pytest.raises(atoll.ServiceClosed, match="'f' is closed"):
        f()
    with pytest.raises(atoll.ServiceClosed):
        f.start()
    with pytest.raises(atoll.ServiceClosed):
        f.submit().result(WITHIN)
    with pytest.raises(atoll.ServiceClosed):
        list(f.map([()]))
    with pytest.raises(atoll.ServiceClosed):
        asyncio.run(_await(f))
    with pytest.raises(atoll.ServiceClosed):
        f.options(timeout=1)()


@pytest.mark.parametrize("order", ["closed after", "closed before"])
@pytest.mark.parametrize("how", ["call", "timeout", "aio", "submit", "map", "start"])
def test_closed_in_the_moment_in_which_it_is_called(how: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread closes it after the call has asked whether it is closed, and before it waits for a worker."""

    @atoll.function
    def f(x: int = 0) -> int:
        return x

    look = Supervisor.refusal

    def closed_meanwhile(supervisor: Supervisor) -> atoll.CircuitOpen | None:
        refusal = look(supervisor)
        f.close()
        warden().run(lambda: None)  # who decides over its workers knows it, too
        return refusal if order == "closed after" else look(supervisor)

    monkeypatch.setattr(Supervisor, "refusal", closed_meanwhile)
    calls: dict[str, Callable[[], object]] = {
        "call": f,
        "timeout": lambda: f.options(timeout=600)(1),
        "aio": lambda: asyncio.run(_await(f)),
        "submit": lambda: f.submit(1).result(WITHIN),
        "map": lambda: list(f.map([1])),
        "start": f.start,
    }
    with pytest.raises(atoll.ServiceClosed):
        calls[how]()
    assert not f._pool.supervisor.workers


def test_closed_before_there_is_anybody_to_see_to_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    @atoll.function
    def f() -> None: ...

    make = Supervisor.__init__

    def closed_meanwhile(supervisor: Supervisor, *arguments: Any, **options: Any) -> None:
        f.close()
        make(supervisor, *arguments, **options)

    monkeypatch.setattr(Supervisor, "__init__", closed_meanwhile)
    with pytest.raises(atoll.ServiceClosed):
        f.start()
    assert not f._pool.supervisor.workers


async def _await(f: atoll.Function[[], int]) -> int:
    return await f.aio()


def test_the_thread_behind_submit_ends_with_close() -> None:
    @atoll.function
    def f(x: int) -> int:
        return x

    def submitting() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "atoll-submit"]

    futures = [f.submit(n) for n in range(3)]
    assert [future.result(WITHIN) for future in futures] == [0, 1, 2]
    assert len(submitting()) == 1
    f.close()
    until(lambda: not submitting())
    assert isinstance(f.submit(1).exception(WITHIN), atoll.ServiceClosed)
    assert submitting() == []


def test_closed_before_it_ever_started() -> None:
    @atoll.function
    def f() -> int:
        return 1

    f.close()
    with pytest.raises(RuntimeError, match="closed"):
        f()


def test_shutdown_closes_everything_and_is_idempotent() -> None:
    @atoll.function
    def f() -> int:
        return 1

    @atoll.function
    def g() -> int:
        return 2

    assert (f(), g()) == (1, 2)
    pids = [f.pid or 0, g.pid or 0]
    atoll.shutdown()
    until_gone(*pids)
    atoll.shutdown()
    for closed in (f, g):
        with pytest.raises(atoll.ServiceClosed):
            closed()

    @atoll.function
    def later() -> int:
        return 3

    assert later() == 3


def test_a_call_in_progress_ends_when_its_service_is_closed(tmp_path: Path) -> None:
    @atoll.function
    def hang(path: str) -> None:
        import time

        open(path, "w").close()
        while True:
            time.sleep(0.1)

    begun = tmp_path / "begun"
    future = hang.submit(str(begun))
    until(begun.exists)
    pid = hang.pid
    assert pid is not None
    hang.close()
    with pytest.raises(atoll.ServiceClosed, match="was closed while 'hang' was running"):
        future.result(WITHIN)
    until_gone(pid)


def test_a_function_nobody_holds_any_more_ends_its_worker() -> None:
    @atoll.function
    def f() -> int:
        return 1

    f()
    pid = f.pid
    assert pid is not None
    del f
    gc.collect()
    until_gone(pid)
