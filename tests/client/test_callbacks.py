# SPDX-License-Identifier: Apache-2.0
"""Callables as arguments: they run in the host while the worker waits, nested to any depth, and are let go of again."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool.channel import nesting
from conditions import until

Write = Callable[[str, str], Path]
Run = Callable[[Coroutine[Any, Any, Any]], Any]

SERVICE = """\
import asyncio
import contextvars
import os
import threading
import time

from atoll_worker import expose

kept = []

@expose
def apply(f, *args, **kwargs):
    return f(*args, **kwargs)

@expose
def apply_all(fs, x):
    return [f(x) for f in fs["these"]]

@expose
async def apply_async(f, *args):
    return await f.aio(*args)

@expose
async def gather(f, count):
    return await asyncio.gather(*[f.aio(i) for i in range(count)])

@expose
def down(f, depth):
    return os.getpid() if depth == 0 else f(depth - 1)

@expose
async def down_async(f, depth):
    return os.getpid() if depth == 0 else await f.aio(depth - 1)

@expose
def caught(f):
    try:
        f()
    except Exception as error:
        return isinstance(error, KeyError), error.args, error.type_name, error.remote_traceback
    return None

@expose
def double(x):
    return 2 * x

@expose
def keep(f):
    kept.append(f)

@expose
def use_kept(*args):
    return kept[-1](*args)

@expose
def drop_kept():
    kept.clear()

@expose
def on_a_thread(f, x):
    found = []
    def run():
        try:
            found.append(f(x))
        except BaseException as error:
            found.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]

@expose
def on_threads(f, count):
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: f(i)})) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(count)]

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.001)

@expose
def later(f, copied, go, done):
    def run():
        wait_for(go)
        try:
            outcome = f(1)
        except Exception as error:
            outcome = type(error).__name__ + ": " + str(error)
        with open(done + ".part", "w") as file:
            file.write(outcome)
        os.rename(done + ".part", done)
    target = contextvars.copy_context().run if copied else lambda g: g()
    threading.Thread(target=target, args=(run,), daemon=True).start()

@expose
def meet(mine, other, x):
    open(mine, "w").close()
    wait_for(other)
    return x

@expose
def leave_nested(f, begun, end):
    threading.Thread(target=contextvars.copy_context().run, args=(f, begun, end), daemon=True).start()
    wait_for(begun)
    open(end, "w").close()
    return "outer"

@expose
def pid():
    return os.getpid()

@expose
def stay(f):
    return f(os.getpid())

@expose
def returns_callable():
    return double

@expose
def hand_over(f):
    "The host calls back what the worker gave it."
    return f(lambda x: x + os.getpid())
"""


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
def service(request: pytest.FixtureRequest, write: Write) -> Iterator[atoll.Service]:
    with atoll.Service(write("calling.py", SERVICE), workers=request.param) as service:
        service.start()
        yield service


@pytest.fixture
def single(write: Write) -> Iterator[atoll.Service]:
    with atoll.Service(write("calling.py", SERVICE)) as service:
        yield service


def lent(service: atoll.Service) -> int:
    """How many objects the workers have of this process."""
    return sum(worker.lending.count for worker in service._pool.workers)


class Counter:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, x: int) -> int:
        self.seen.append(x)
        return x + len(self.seen)

    def __call__(self, x: int) -> int:
        return self.add(x)


def test_every_kind_of_callable(single: atoll.Service) -> None:
    counter = Counter()
    thread = threading.get_ident()

    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return 3 * x

    def where() -> bool:
        return threading.get_ident() == thread

    assert single.apply(lambda x: x + 1, 1) == 2
    assert single.apply(where) is True  # on the thread that waits
    assert single.apply(counter.add, 5) == 6
    assert single.apply(counter, 5) == 7
    assert counter.seen == [5, 5]
    assert single.apply(later, 5) == 15
    assert single.apply(max, 3, 4) == 4
    assert single.apply(sorted, [3, 1], reverse=True) == [3, 1]
    assert single.apply_all({"these": [counter.add, later, abs]}, 7) == [10, 21, 7]
    until(lambda: gc.collect() is not None and lent(single) == 0, what="what was lent is let go of")


def test_from_a_coroutine_of_the_worker(single: atoll.Service) -> None:
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return -x

    assert single.apply_async(lambda x: x + 1, 1) == 2
    assert single.apply_async(later, 4) == -4
    assert single.gather(lambda i: i * i, 20) == [i * i for i in range(20)]
    assert single.gather(later, 20) == [-i for i in range(20)]


def test_on_an_event_loop(single: atoll.Service, run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def on_the_loop(x: int) -> bool:
            await asyncio.sleep(0)
            return asyncio.get_running_loop() is loop

        def off_the_loop(x: int) -> bool:
            return asyncio._get_running_loop() is None

        assert await single.apply.aio(on_the_loop, 1)
        assert await single.apply.aio(off_the_loop, 1)
        assert await single.apply_async.aio(on_the_loop, 1)
        assert await single.gather.aio(on_the_loop, 5) == [True] * 5

    run(main())


def test_an_error_of_the_host_keeps_type_and_traceback(single: atoll.Service) -> None:
    def look_up() -> int:
        return {"a": 1}["missing"]

    is_key_error, args, type_name, text = single.caught(look_up)
    assert is_key_error
    assert args == ("missing",)
    assert type_name == "builtins.KeyError" or type_name == "KeyError"
    assert "look_up" in text
    assert __file__ in text


def test_an_error_that_crosses_twice(single: atoll.Service) -> None:
    class Odd(ValueError):
        pass

    def fail() -> None:
        raise Odd("not even")

    with pytest.raises(atoll.RemoteError, match="not even") as caught:
        single.apply(fail)
    assert isinstance(caught.value, ValueError)
    assert "Odd" in caught.value.type_name
    shown = "".join(traceback.format_exception(caught.value))
    assert "in apply" in shown
    assert "in fail" in shown


def test_an_error_that_crosses_twice_on_a_loop(single: atoll.Service, run: Run) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    async def main() -> None:
        with pytest.raises(KeyError) as caught:
            await single.apply.aio(fail)
        assert isinstance(caught.value, atoll.RemoteError)
        with pytest.raises(KeyError):
            await single.apply_async.aio(fail)
        assert await single.double.aio(4) == 8

    run(main())


def test_nested_to_depth_50(service: atoll.Service) -> None:
    def down(depth: int) -> int:
        return service.down(down, depth)  # type: ignore[no-any-return]

    pid = service.down(down, 50)
    assert pid in [worker.pid for worker in service.status().workers]
    assert service.double(2) == 4


def test_every_level_is_on_the_one_worker(service: atoll.Service) -> None:
    seen = []

    def below(depth: int) -> Any:
        seen.append(service.call("pid"))
        return service.down(below, depth)

    service.down(below, 5)
    assert len(set(seen)) == 1


def test_nested_to_depth_50_on_a_loop(service: atoll.Service, run: Run) -> None:
    async def main() -> None:
        async def down(depth: int) -> Any:
            return await service.down.aio(down, depth)

        async def down_async(depth: int) -> Any:
            return await service.down_async.aio(down_async, depth)

        await service.down.aio(down, 50)
        await service.down_async.aio(down_async, 50)
        assert await service.double.aio(2) == 4

    run(main())


def test_nested_to_depth_50_from_a_callback_that_blocks(service: atoll.Service, run: Run) -> None:
    def down(depth: int) -> Any:
        return service.down_async(down, depth)

    async def main() -> None:
        await service.down_async.aio(down, 50)

    service.down_async(down, 50)
    run(main())


def test_too_deep_says_so(single: atoll.Service) -> None:
    def down(depth: int) -> Any:
        return single.down(down, depth)

    def from_below(frames: int) -> Any:
        return from_below(frames - 1) if frames else single.down(down, 1000)

    for frames in range(12):  # wherever on the way of a call the stack ends
        with pytest.raises(atoll.RemoteError, match=r"nested|recursion"):
            from_below(frames)
        assert single.double(1) == 2
    assert single.status().restarts == 0


def test_calls_side_by_side_in_a_callback(service: atoll.Service, run: Run) -> None:
    async def main() -> None:
        async def many(count: int) -> Any:
            return await asyncio.gather(*[service.double.aio(i) for i in range(count)])

        async def many_nested(count: int) -> Any:
            return await asyncio.gather(*[service.apply.aio(many, 3) for _ in range(count)])

        assert await service.apply.aio(many, 20) == [2 * i for i in range(20)]
        assert await service.apply_async.aio(many, 20) == [2 * i for i in range(20)]
        assert await service.apply.aio(many_nested, 5) == [[0, 2, 4]] * 5

    run(main())


def test_calls_side_by_side_on_threads_of_a_callback(service: atoll.Service) -> None:
    def many(count: int) -> list[int]:
        found: dict[int, int] = {}
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(lambda i: found.update({i: service.double(i)}), i)
            )
            for i in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[i] for i in range(count)]

    assert service.apply(many, 8) == [2 * i for i in range(8)]
    assert nesting.get() is None


def test_many_threads_with_nested_calls(service: atoll.Service) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        def below(depth: int) -> Any:
            return pids[0] if depth == 0 else service.down(below, depth)

        try:
            for _ in range(20):
                assert service.apply(below, 4) in pids
                assert service.apply(lambda: number) == number
        except BaseException as error:
            failures.append(error)

    pids = [worker.pid for worker in service.status().workers]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_a_callable_that_is_kept(single: atoll.Service) -> None:
    counter = Counter()
    single.keep(counter.add)
    assert single.use_kept(1) == 2
    assert single.use_kept(1) == 3
    gc.collect()
    assert lent(single) == 1
    single.drop_kept()
    until(lambda: lent(single) == 0)


def test_a_callable_goes_when_its_worker_does(single: atoll.Service) -> None:
    class Something:
        def use(self) -> None: ...

    gone = threading.Event()

    class Noted(Something):
        def __del__(self) -> None:
            gone.set()

    single.keep(Noted().use)
    gc.collect()
    assert not gone.is_set()
    pid = single.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: gc.collect() is not None and gone.is_set())


def test_the_same_callable_again_and_again_is_lent_once(single: atoll.Service) -> None:
    counter = Counter()
    single.keep(counter)
    for i in range(1000):
        single.apply(counter, i)
    assert lent(single) == 1
    single.drop_kept()
    until(lambda: lent(single) == 0)


def test_from_a_thread_of_the_worker(single: atoll.Service) -> None:
    assert single.on_a_thread(lambda x: x + 1, 1) == 2
    assert single.on_threads(lambda i: i * i, 10) == [i * i for i in range(10)]

    def nested(i: int) -> int:
        return single.double(i)  # type: ignore[no-any-return]

    assert single.on_threads(nested, 10) == [2 * i for i in range(10)]


@pytest.mark.parametrize("copied", [True, False], ids=["with the call's context", "without"])
def test_after_the_call_has_ended(single: atoll.Service, copied: bool, tmp_path: Path) -> None:
    called: list[int] = []
    go, done = tmp_path / "go", tmp_path / "done"
    single.later(called.append, copied, str(go), str(done))
    go.touch()
    # It is told at once, and does not wait to be served by whichever call comes next.
    assert "in progress" in until(lambda: done.exists() and done.read_text())
    assert not called
    assert single.double(1) == 2


def test_calls_of_two_threads_that_end_in_any_order(single: atoll.Service, tmp_path: Path) -> None:
    """Each gets its own answer, though an answer on the wire is always to the innermost call."""
    for turn in range(10):
        paths = [str(tmp_path / f"{turn}.{i}") for i in range(2)]

        def meet(i: int, paths: list[str] = paths) -> Any:
            return single.meet(paths[i], paths[1 - i], i)

        assert single.on_threads(meet, 2) == [0, 1]


def test_a_call_that_ends_before_one_within_it(single: atoll.Service, tmp_path: Path) -> None:
    def nested(begun: str, end: str) -> Any:
        return single.meet(begun, end, "inner")

    for turn in range(10):
        begun, end = str(tmp_path / f"begun{turn}"), str(tmp_path / f"end{turn}")
        assert single.leave_nested(nested, begun, end) == "outer"


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_interrupts_the_host_in_a_callback(single: atoll.Service, kind: type[BaseException]) -> None:
    def interrupted() -> None:
        raise kind

    pid = single.call("pid")
    with pytest.raises(kind):
        single.apply(interrupted)
    assert single.call("pid") == pid  # its worker goes on


@pytest.mark.usefixtures("unhurried")
def test_what_interrupts_the_host_deep_down(single: atoll.Service) -> None:
    def down(depth: int) -> Any:
        if depth == 0:
            raise KeyboardInterrupt
        return single.down(down, depth)

    pid = single.call("pid")
    with pytest.raises(KeyboardInterrupt):
        single.down(down, 5)
    assert single.call("pid") == pid


@pytest.mark.usefixtures("unhurried")
def test_cancelled_in_a_callback(single: atoll.Service, run: Run) -> None:
    async def main() -> None:
        inside = asyncio.Event()

        async def wait(_: int) -> None:
            inside.set()
            await asyncio.sleep(60)

        for name in ("apply", "apply_async"):
            inside.clear()
            task = asyncio.create_task(single.function(name).aio(wait, 1))
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await single.function("pid").aio() == pid

    pid = single.call("pid")
    run(main())


@pytest.mark.usefixtures("unhurried")
def test_cancelled_in_a_call_within_a_callback(single: atoll.Service, run: Run) -> None:
    async def main() -> None:
        inside = asyncio.Event()

        async def wait(_: int) -> None:
            inside.set()
            await asyncio.sleep(60)

        async def between(_: int) -> Any:
            return await single.apply.aio(wait, 1)

        task = asyncio.create_task(single.apply.aio(between, 1))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await single.function("pid").aio() == pid

    pid = single.call("pid")
    run(main())


def test_cancelled_while_a_callback_blocks(single: atoll.Service, run: Run) -> None:
    inside, go = threading.Event(), threading.Event()

    def wait(_: int) -> Any:
        inside.set()
        go.wait(30)
        return single.double(21)

    async def main() -> None:
        task = asyncio.create_task(single.apply.aio(wait, 1))
        await asyncio.to_thread(inside.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        assert await single.double.aio(4) == 8

    run(main())


@pytest.mark.usefixtures("unhurried")
def test_a_callback_that_is_cancelled_by_itself(single: atoll.Service, run: Run) -> None:
    async def main() -> None:
        async def give_up(_: int) -> None:
            raise asyncio.CancelledError

        with pytest.raises(atoll.RemoteError):
            await single.apply.aio(give_up, 1)
        assert await single.function("pid").aio() == pid

    pid = single.call("pid")
    run(main())


def test_a_callback_that_outlives_the_deadline(single: atoll.Service) -> None:
    pid = single.call("pid")
    wait = threading.Event()
    with pytest.raises(atoll.CallTimeout) as caught:
        single.apply.options(timeout=0.2)(lambda: bool(wait.wait(0.4)) or [single.double(1), wait.wait(0.1)])
    assert caught.value.rung is not None
    assert single.double(4) == 8
    assert isinstance(pid, int)


def test_a_task_that_a_callback_leaves_behind(single: atoll.Service, run: Run) -> None:
    """Its call was begun within the callback, which waits for it before it answers."""

    async def main() -> None:
        tasks = []

        async def leave(x: int) -> int:
            tasks.append(asyncio.create_task(single.double.aio(x)))
            await asyncio.sleep(0)
            return x

        for i in range(20):
            assert await single.apply.aio(leave, i) == i
        assert await asyncio.gather(*tasks) == [2 * i for i in range(20)]

    run(main())


def test_the_worker_dies_while_the_host_runs_a_callback(single: atoll.Service, run: Run) -> None:
    def kill(pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return 1

    async def kill_later(pid: int) -> int:
        await asyncio.sleep(0)
        return kill(pid)

    def kill_and_call(pid: int) -> Any:
        kill(pid)
        return single.double(2)

    with pytest.raises(atoll.WorkerDied):
        single.stay(kill)
    with pytest.raises(atoll.WorkerDied):
        single.stay(kill_later)
    with pytest.raises(atoll.WorkerDied):
        single.stay(kill_and_call)

    async def main() -> None:
        with pytest.raises(atoll.WorkerDied):
            await single.stay.aio(kill_later)
        with pytest.raises(atoll.WorkerDied):
            await single.stay.aio(kill)

    run(main())
    assert single.double(2) == 4


def test_what_a_callback_returns_cannot_cross(single: atoll.Service) -> None:
    with pytest.raises(TypeError, match=r"result: _thread\.lock"):
        single.apply(threading.Lock)
    with pytest.raises(TypeError, match="lambda"):
        single.apply(lambda: {"f": lambda: 1})
    with pytest.raises(atoll.EncodeError, match="double"):
        single.returns_callable()
    assert single.double(2) == 4


def test_a_callable_of_the_worker_for_a_callback(single: atoll.Service) -> None:
    kept: list[Any] = []

    def use(function: Any) -> Any:
        kept.append(function)
        return function(1)

    pid = single.call("pid")
    assert single.hand_over(use) == pid + 1
    assert kept[0](2) == pid + 2  # also after the call: it goes to the worker where it lives
    assert single._pool.workers[0].lending.borrowed == 1
    kept.clear()
    until(lambda: single._pool.workers[0].lending.borrowed == 0)


def test_a_callback_of_another_service(single: atoll.Service, write: Write) -> None:
    with atoll.Service(write("other.py", SERVICE)) as other:

        def across(depth: int) -> Any:
            return (other if depth % 2 else single).down(across, depth)

        assert single.apply(across, 20)
        assert other.apply(single.double, 4) == 8


def test_a_callback_may_wait_for_calls_that_it_submits() -> None:
    """Also where the only worker, and the only thread that makes submitted calls, wait for the callback."""

    @atoll.function
    def call(function: Callable[[int], int], x: int) -> int:
        return function(x)

    def by_submitting(x: int) -> int:
        return call.submit(lambda y: y * 2, x).result(timeout=30)

    def by_mapping(x: int) -> int:
        return sum(call.map([lambda y: y + 1] * 3, [x] * 3))

    try:
        assert call(by_submitting, 4) == 8
        assert call.submit(by_submitting, 5).result(timeout=30) == 10
        assert call(by_mapping, 4) == 15
    finally:
        call.close()
