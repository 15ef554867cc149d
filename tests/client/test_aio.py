# SPDX-License-Identifier: Apache-2.0
"""Calls on an event loop: natively, in order, cancellable, on any loop, and never in the way of other tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from client.rungs import not_before
from conditions import until, until_gone


def double() -> atoll.Function[[int], int]:
    @atoll.function
    def double(x: int) -> int:
        return 2 * x

    return double


def waiting() -> atoll.Function[[str], int]:
    @atoll.function
    def wait_for(path: str) -> int:
        import os
        import time

        open(path + ".begun", "w").close()
        while not os.path.exists(path):
            time.sleep(0.002)
        return os.getpid()

    return wait_for


def test_one_after_another_and_gathered(run: Any) -> None:
    f = double()

    async def main() -> None:
        assert [await f.aio(n) for n in range(200)] == [2 * n for n in range(200)]
        assert await asyncio.gather(*(f.aio(n) for n in range(500))) == [2 * n for n in range(500)]

    run(main())


def test_large_values(run: Any) -> None:
    @atoll.function
    def reverse(data: bytes) -> bytes:
        return data[::-1]

    data = bytes(range(256)) * 40_000

    async def main() -> None:
        results = await asyncio.gather(*(reverse.aio(data[n:]) for n in range(4)))
        assert all(result == data[n:][::-1] for n, result in enumerate(results))

    run(main())


class Gated:
    """A service that is ready once its gate is open."""

    def __init__(self, folder: Path) -> None:
        self._gate = folder / "gate"
        file = folder / "slow_start.py"
        file.write_text(
            "import os, time\n"
            "from atoll_worker import Service, expose\n"
            "class Slow(Service):\n"
            "    def setup(self):\n"
            f"        while not os.path.exists({str(self._gate)!r}):\n"
            "            time.sleep(0.005)\n"
            "    @expose\n"
            "    def pid(self):\n"
            "        return os.getpid()\n"
        )
        self.service = atoll.Service(file)
        self.pid = self.service.function("pid")

    def open(self) -> None:
        self._gate.touch()


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[Gated]:
    made = Gated(tmp_path)
    yield made
    made.service.close()


def test_the_first_call_does_not_block_the_loop(run: Any, gated: Gated) -> None:
    async def main() -> None:
        call = asyncio.create_task(gated.pid.aio())
        for _ in range(100):
            await asyncio.sleep(0.0001)
        assert not call.done()
        gated.open()  # by this very loop: were it blocked, this would not be reached
        assert await call == gated.service.pid

    run(main())


def test_a_slow_call_does_not_block_the_loop(run: Any, tmp_path: Path) -> None:
    f = waiting()
    go = tmp_path / "go"

    async def main() -> None:
        await asyncio.to_thread(f.start)
        call = asyncio.create_task(f.aio(str(go)))
        for _ in range(100):
            await asyncio.sleep(0.0001)
        assert not call.done()
        go.touch()  # by this very loop: were it blocked, this would not be reached
        assert await call == f.pid

    run(main())


def test_a_row_of_quick_calls_lets_other_tasks_run(run: Any) -> None:
    f = double()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def main() -> None:
        await f.aio(0)
        beside = asyncio.create_task(other())
        calls = 0
        while turns < 10:
            await f.aio(1)
            calls += 1
            assert calls < 100_000, turns
        beside.cancel()

    run(main())


async def until_it_runs(f: atoll.Function[..., Any]) -> None:
    """Wait until a call is in progress."""
    while not any(f._pool.in_flight(worker) for worker in f._pool.workers):
        await asyncio.sleep(0.001)


@pytest.mark.usefixtures("unhurried")
def test_cancelling_ends_the_call_and_the_worker_goes_on(run: Any, tmp_path: Path) -> None:
    @atoll.function
    def note_the_end(path: str, folder: str) -> int:
        import os
        import time

        try:
            open(folder + "/began", "w").close()
            while not os.path.exists(path):
                time.sleep(0.002)
        finally:
            open(folder + "/ended", "w").close()
        return os.getpid()

    async def main() -> None:
        call = asyncio.create_task(note_the_end.aio(str(tmp_path / "never"), str(tmp_path)))
        while not (tmp_path / "began").exists():
            await asyncio.sleep(0.001)
        first = note_the_end.pid
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        # The task does not wait for it, the next call does.
        (tmp_path / "go").touch()
        next_call = asyncio.create_task(note_the_end.aio(str(tmp_path / "go"), str(tmp_path)))
        while not (tmp_path / "ended").exists():
            await asyncio.sleep(0.001)
        assert await next_call == first

    run(main())


def test_cancelling_a_call_that_cannot_be_interrupted_stops_the_worker(run: Any, tmp_path: Path) -> None:
    @atoll.function
    def hold(path: str) -> int:
        import itertools
        import os

        if path:
            # Holds the interpreter lock, from before the file is there.
            sum(itertools.chain(filter(None, map(os.mknod, [path])), range(10**13)))
        return os.getpid()

    async def main() -> None:
        call = asyncio.create_task(hold.aio(str(tmp_path / "began")))
        while not (tmp_path / "began").exists():
            await asyncio.sleep(0.001)
        first = hold.pid
        assert first is not None
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await hold.aio("") not in (first, None)  # it waits for what takes its time, and the loop is free
        until_gone(first)

    run(main())


def test_cancelling_a_call_that_waits_for_its_turn_stops_nothing(run: Any, tmp_path: Path) -> None:
    f = waiting()
    go = tmp_path / "go"

    async def main() -> None:
        await asyncio.to_thread(f.start)
        pid = f.pid
        first = asyncio.create_task(f.aio(str(go)))
        waiting = [asyncio.create_task(f.aio(str(go))) for _ in range(3)]
        while f._pool.waiting < 3:
            await asyncio.sleep(0.001)
        waiting[0].cancel()
        waiting[2].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting[0]
        go.touch()
        assert await first == pid
        assert await waiting[1] == pid
        assert waiting[2].cancelled()

    run(main())


def test_cancelling_while_the_worker_starts(run: Any, gated: Gated) -> None:
    async def main() -> None:
        call = asyncio.create_task(gated.pid.aio())
        while not gated.service._pool.waiting:
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        gated.open()
        assert await gated.pid.aio() == gated.service.pid

    run(main())


@pytest.mark.usefixtures("unhurried")
def test_deadlines(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    f = waiting()
    never, go, begun = str(tmp_path / "never"), tmp_path / "go", tmp_path / "never.begun"
    go.touch()
    not_before(monkeypatch, begun.exists)

    async def main() -> None:
        await asyncio.to_thread(f.start)
        first = f.pid
        assert first is not None
        with pytest.raises(atoll.CallTimeout, match=r"did not answer within 0.5 seconds") as caught:
            await f.options(timeout=0.5).aio(never)
        assert caught.value.rung == "exception"
        assert await f.aio(str(go)) == first
        begun.unlink(missing_ok=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(f.aio(never), 0.2)
        assert await f.aio(str(go)) == first
        begun.unlink(missing_ok=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await f.aio(never)
        assert await f.aio(str(go)) == first
        begun.unlink(missing_ok=True)
        holder = asyncio.create_task(f.aio(never))
        await until_it_runs(f)
        with pytest.raises(atoll.CallTimeout, match="did not get its turn"):
            await f.options(timeout=0.1).aio(str(go))
        holder.cancel()
        assert await f.options(timeout=30).aio(str(go)) == first

    run(main())


def test_several_loops_in_several_threads_and_plain_threads_at_once() -> None:
    f = double()
    f(0)
    wrong: list[object] = []

    def on_a_loop(base: int) -> None:
        async def main() -> None:
            results = await asyncio.gather(*(f.aio(base + n) for n in range(100)))
            if results != [2 * (base + n) for n in range(100)]:
                wrong.append(results)

        try:
            asyncio.run(main())
        except BaseException as error:
            wrong.append(error)

    def plainly(base: int) -> None:
        for n in range(100):
            try:
                if f(base + n) != 2 * (base + n):
                    wrong.append(base + n)
            except BaseException as error:
                wrong.append(error)

    threads = [
        threading.Thread(target=target, args=(1000 * number,))
        for number, target in enumerate([on_a_loop, plainly, on_a_loop, plainly])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_loops_one_after_another_use_the_same_worker() -> None:
    f = double()
    pids = set()
    for _ in range(3):
        assert asyncio.run(_call(f)) == 14
        pids.add(f.pid)
    assert f(7) == 14
    assert len(pids) == 1


async def _call(f: atoll.Function[[int], int]) -> int:
    return await f.aio(7)


def test_a_loop_that_ends_with_a_task_in_the_queue_leaves_the_turn_to_others(tmp_path: Path) -> None:
    f = waiting()
    go = tmp_path / "go"
    f.start()
    thread = threading.Thread(target=f, args=(str(go),))
    thread.start()
    until(lambda: f.status().in_flight)

    async def abandon() -> None:
        _tasks = [asyncio.create_task(f.aio(str(go))) for _ in range(3)]
        while f._pool.waiting < 3:
            await asyncio.sleep(0.001)

    asyncio.run(abandon())  # cancels them
    go.touch()
    thread.join(30)
    assert f.options(timeout=30)(str(go)) == f.pid


def test_errors_are_raised_in_the_task(run: Any) -> None:
    @atoll.function
    def fail(how: str) -> None:
        import os

        if how == "die":
            os._exit(4)
        raise LookupError(how)

    async def main() -> None:
        with pytest.raises(LookupError, match="lost"):
            await fail.aio("lost")
        with pytest.raises(atoll.WorkerDied, match="exited with code 4"):
            await fail.aio("die")
        with pytest.raises(atoll.EncodeError, match=r"args\[0\]: _thread.lock"):
            await fail.aio(threading.Lock())  # type: ignore[arg-type]
        results = await asyncio.gather(*(fail.aio("die") for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [atoll.WorkerDied] * 3
        with pytest.raises(LookupError):
            await fail.aio("again")

    run(main())


def test_closing_ends_a_call_in_progress(run: Any, tmp_path: Path) -> None:
    f = waiting()

    async def main() -> None:
        await asyncio.to_thread(f.start)
        call = asyncio.create_task(f.aio(str(tmp_path / "never")))
        await until_it_runs(f)
        await asyncio.to_thread(f.close)
        with pytest.raises(atoll.ServiceClosed):
            await call

    run(main())


def test_a_task_can_be_cancelled_while_its_worker_starts(gated: Gated) -> None:
    """At once, and the start goes on: who calls next has its worker."""

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gated.pid.aio(), 0.05)

    asyncio.run(cancelled())  # ends although the worker cannot be ready yet
    gated.open()
    slow = gated.service
    assert slow.pid is None or isinstance(slow.pid, int)
    assert slow.call("pid") > 0
    assert asyncio.run(gated.pid.aio()) == slow.call("pid")
