# SPDX-License-Identifier: Apache-2.0
"""``progress(...)`` in a worker arrives at the caller's ``on_progress`` before it returns; unasked for, it costs no
crossing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll

Write = Callable[[str, str], Path]
Run = Callable[[Coroutine[Any, Any, Any]], Any]

SERVICE = """\
import asyncio
import threading

from atoll_worker import context, expose, progress

@expose
def plain(n):
    for i in range(n):
        progress(i, total=n, message=f"step {i}")
    return n

@expose
async def later(n):
    for i in range(n):
        await asyncio.sleep(0)
        progress(i, n)
    return n

@expose
def steps(n):
    for i in range(n):
        progress(i)
        yield i

@expose
def on_a_thread():
    thread = threading.Thread(target=progress, args=(1,))
    thread.start()
    thread.join()

@expose
def asked(n):
    "How often the host was called."
    channel = context.channel_now()
    before, count = channel.ask, []
    channel.ask = lambda *args: count.append(args) or before(*args)
    try:
        progress(1)
    finally:
        del channel.ask
    return len(count)

@expose
def caught():
    try:
        progress(1)
    except ValueError as error:
        return str(error)

@expose
def nested(f):
    progress(1)
    f()
    progress(3)
"""


@pytest.fixture
def service(write: Write) -> Iterator[atoll.Service]:
    with atoll.Service(write("steps.py", SERVICE)) as service:
        yield service


class Seen:
    def __init__(self) -> None:
        self.calls: list[tuple[float, float | None, str | None]] = []
        self.threads: set[int] = set()

    def __call__(self, done: float, total: float | None, message: str | None) -> None:
        self.calls.append((done, total, message))
        self.threads.add(threading.get_ident())


def test_a_call(service: atoll.Service) -> None:
    seen = Seen()
    plain = service.plain.options(on_progress=seen)
    assert plain(3) == 3
    assert seen.calls == [(0, 3, "step 0"), (1, 3, "step 1"), (2, 3, "step 2")]
    assert seen.threads == {threading.get_ident()}
    assert service.plain(3) == 3
    assert len(seen.calls) == 3
    assert plain.options(timeout=30)(1) == 1
    assert len(seen.calls) == 4


def test_a_coroutine_function(service: atoll.Service) -> None:
    seen = Seen()
    assert service.later.options(on_progress=seen)(3) == 3
    assert seen.calls == [(0, 3, None), (1, 3, None), (2, 3, None)]


def test_on_a_loop(service: atoll.Service, run: Run) -> None:
    async def main() -> None:
        for name in ("plain", "later"):
            seen = Seen()
            assert await service.function(name).options(on_progress=seen).aio(3) == 3
            assert [done for done, _, _ in seen.calls] == [0, 1, 2]

            found: list[float] = []

            async def note(done: float, total: float | None, message: str | None, found: list[float] = found) -> None:
                found.append(done)

            assert await service.function(name).options(on_progress=note).aio(3) == 3
            assert found == [0, 1, 2]

    run(main())


def test_submitted(service: atoll.Service) -> None:
    seen = Seen()
    assert service.plain.options(on_progress=seen).submit(2).result(30) == 2
    assert [done for done, _, _ in seen.calls] == [0, 1]


def test_from_a_thread_of_the_worker(service: atoll.Service) -> None:
    seen = Seen()
    service.on_a_thread.options(on_progress=seen)()
    assert seen.calls == [(1, None, None)]


def test_unasked_for_nothing_crosses(service: atoll.Service) -> None:
    assert service.asked(1) == 0
    assert service.asked.options(on_progress=Seen())(1) == 1


def test_one_that_raises_raises_in_the_function(service: atoll.Service) -> None:
    def refuse(done: float, total: float | None, message: str | None) -> None:
        raise ValueError("enough")

    assert service.caught.options(on_progress=refuse)() == "enough"
    with pytest.raises(ValueError, match="enough"):
        service.plain.options(on_progress=refuse)(3)
    assert service.plain(3) == 3


def test_a_call_within_a_callback_has_its_own(service: atoll.Service) -> None:
    outer, inner = Seen(), Seen()

    def call() -> None:
        service.plain.options(on_progress=inner)(2)
        service.plain(5)

    service.nested.options(on_progress=outer)(call)
    assert [done for done, _, _ in outer.calls] == [1, 3]
    assert [done for done, _, _ in inner.calls] == [0, 1]


def test_what_cannot_be_called(service: atoll.Service) -> None:
    with pytest.raises(atoll.ManifestError, match="on_progress"):
        service.plain.options(on_progress=3)
