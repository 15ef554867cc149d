# SPDX-License-Identifier: Apache-2.0
"""Streams: generator functions, iterators as results and as arguments; nothing is made that was not asked for."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import atoll
from client.deadlines import pass_once
from conditions import until

Write = Callable[[str, str], Path]
Run = Callable[[Coroutine[Any, Any, Any]], Any]

SERVICE = """\
import asyncio
import os
import time

from atoll_worker import expose

log = []

@expose
def count(n):
    try:
        for i in range(n):
            log.append(i)
            yield i
    finally:
        log.append("finally")

@expose
async def count_async(n):
    try:
        for i in range(n):
            await asyncio.sleep(0)
            log.append(i)
            yield i
    finally:
        await asyncio.sleep(0)
        log.append("finally")

@expose
def iterator(n):
    return iter([i * i for i in range(n)])

@expose
def in_a_dict(n):
    return {"numbers": iter(range(n)), "more": [map(str, range(n))]}

@expose
def async_iterator(n):
    return count_async(n)

@expose
async def made_async(n):
    await asyncio.sleep(0)
    return count(n)

@expose
def failing(n):
    yield from range(n)
    raise KeyError("after", n)

@expose
async def failing_async(n):
    for i in range(n):
        yield i
    raise KeyError("after", n)

@expose
def endless():
    i = 0
    while True:
        yield i
        i += 1

@expose
def slow(n):
    for i in range(n):
        time.sleep(0.003)
        yield i

@expose
def arrays(n, size):
    import numpy
    for i in range(n):
        yield numpy.full(size, i)

@expose
def texts(n, size):
    for i in range(n):
        yield "x" * size

@expose
def hanging(begun):
    yield 1
    open(begun, "w").close()
    time.sleep(60)

@expose
def dying():
    yield 1
    yield 2
    os._exit(3)

@expose
def taken():
    return log[:]

@expose
def forget():
    log.clear()

@expose
def double(x):
    return 2 * x

@expose
def pid():
    return os.getpid()

@expose
def rss():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])

@expose
def total(numbers):
    return sum(numbers)

@expose
async def total_async(numbers):
    return sum([x async for x in numbers])

@expose
def first(numbers, n):
    found = []
    for x in numbers:
        found.append(x)
        if len(found) == n:
            break
    return found

@expose
def nested_total(work):
    return [sum(work["a"][0]), sum(work["b"])]

@expose
def through(numbers):
    for x in numbers:
        yield 2 * x

@expose
def caught(numbers):
    found = []
    try:
        for x in numbers:
            found.append(x)
    except LookupError as error:
        return found, str(error), type(error).__name__

kept = []

@expose
def keep(numbers):
    kept.append(numbers)

@expose
def next_of_kept():
    return next(kept[0])

@expose
def drop_kept():
    kept.clear()
"""


@pytest.fixture
def service(write: Write) -> Iterator[atoll.Service]:
    with atoll.Service(write("streaming.py", SERVICE)) as service:
        yield service


def borrowed(service: atoll.Service) -> int:
    gc.collect()
    return sum(worker.lending.borrowed for worker in service._pool.workers)


def lent(service: atoll.Service) -> int:
    gc.collect()
    return sum(worker.lending.count for worker in service._pool.workers)


def collect(stream: Iterable[Any], found: list[Any]) -> None:
    for item in stream:
        found.append(item)


async def collect_async(stream: AsyncIterable[Any], found: list[Any]) -> None:
    async for item in stream:
        found.append(item)


@pytest.mark.parametrize("name", ["count", "count_async", "async_iterator", "made_async"])
@pytest.mark.parametrize("count", [0, 1, 2, 5000])
def test_for(service: atoll.Service, name: str, count: int) -> None:
    stream = service.function(name)(count)
    assert isinstance(stream, atoll.Stream)
    assert list(stream) == list(range(count))
    assert list(stream) == []
    assert next(stream, None) is None
    until(lambda: service.taken()[-1:] == ["finally"])


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("name", ["count", "count_async", "async_iterator", "made_async"])
def test_async_for(service: atoll.Service, run: Run, name: str, started: bool) -> None:
    async def main() -> None:
        function = getattr(service, name)  # the first call starts it
        if started:
            service.start()
        if name.startswith("count"):
            assert [x async for x in function.aio(3000)] == list(range(3000))
        assert [x async for x in await function.aio(3000)] == list(range(3000))
        stream = await function.aio(10)
        assert isinstance(stream, atoll.Stream)
        async with stream:
            assert await anext(stream) == 0
        assert [x async for x in stream] == []

    run(main())


def test_an_iterator_is_a_stream(service: atoll.Service) -> None:
    assert list(service.iterator(4)) == [0, 1, 4, 9]
    found = service.in_a_dict(3)
    assert list(found["numbers"]) == [0, 1, 2]
    assert list(found["more"][0]) == ["0", "1", "2"]
    del found
    until(lambda: borrowed(service) == 0)


@pytest.mark.parametrize("name", ["count", "count_async"])
def test_break_ends_the_generator(service: atoll.Service, name: str) -> None:
    for x in service.function(name)(10**9):
        if x == 10:
            break
    until(lambda: service.taken()[-1] == "finally")
    assert len(service.taken()) < 1000
    service.forget()
    with service.function(name)(10**9) as stream:
        assert next(stream) == 0
    assert service.taken()[-1] == "finally"  # at once
    service.forget()
    stream = service.function(name)(10**9)
    assert next(stream) == 0
    stream.close()
    stream.close()
    assert list(stream) == []
    assert service.taken()[-1] == "finally"


@pytest.mark.parametrize("name", ["count", "count_async"])
def test_break_ends_the_generator_without_a_call(write: Write, name: str, tmp_path: Path) -> None:
    """An idle worker, too, lets go of it."""
    text = SERVICE.replace('log.append("finally")', 'open(os.environ["ENDED"], "w").close()')
    ended = tmp_path / "ended"
    with atoll.Service(write("s.py", text), env_vars={"ENDED": str(ended)}) as service:
        for _ in service.function(name)(10**9):
            break
        until(lambda: gc.collect() is not None and ended.exists())


@pytest.mark.parametrize("name", ["count", "count_async"])
def test_break_on_a_loop(service: atoll.Service, run: Run, name: str) -> None:
    async def main() -> None:
        async for x in service.function(name).aio(10**9):
            if x == 10:
                break
        await asyncio.sleep(0)
        while (await service.taken.aio())[-1] != "finally":
            await asyncio.sleep(0.005)

    run(main())


@pytest.mark.parametrize("name", ["failing", "failing_async"])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_an_error_comes_after_the_items_before_it(service: atoll.Service, name: str, count: int) -> None:
    found = []
    with pytest.raises(KeyError) as caught:
        collect(service.function(name)(count), found)
    assert found == list(range(count))
    assert caught.value.args == ("after", count)
    assert isinstance(caught.value, atoll.RemoteError)
    assert f"in {name}" in caught.value.remote_traceback


def test_an_error_on_a_loop(service: atoll.Service, run: Run) -> None:
    async def main() -> None:
        found = []
        with pytest.raises(KeyError):
            await collect_async(service.failing.aio(100), found)
        assert found == list(range(100))

    run(main())


def test_slow_items_come_one_by_one(service: atoll.Service, run: Run) -> None:
    stream = service.slow(20)
    for i in range(20):
        assert next(stream) == i
        assert not stream._inlet.items
    assert list(stream) == []

    async def main() -> None:
        stream = await service.slow.aio(20)
        found = []
        async for i in stream:
            assert not stream._inlet.items
            found.append(i)
        assert found == list(range(20))

    run(main())


def test_endless(service: atoll.Service) -> None:
    assert list(itertools.islice(service.endless(), 10_000)) == list(range(10_000))


def test_two_streams_and_calls_between(service: atoll.Service) -> None:
    """On the one worker: a stream holds it only while it fetches."""
    for i, (a, b) in enumerate(zip(service.count(300), service.count_async(300), strict=True)):
        assert a == b == i
        assert service.double(a) == 2 * i
        if i % 50 == 0:
            assert list(service.count(3)) == [0, 1, 2]


def test_two_streams_and_calls_between_on_a_loop(service: atoll.Service, run: Run) -> None:
    async def consume(name: str) -> list[int]:
        found = []
        async for x in service.function(name).aio(200):
            found.append(x)
            assert await service.double.aio(x) == 2 * x
        return found

    async def main() -> None:
        names = ("count", "count_async", "count")
        assert await asyncio.gather(*[consume(name) for name in names]) == [list(range(200))] * 3

    run(main())


def test_arrays(service: atoll.Service) -> None:
    for size in (1, 1000, 200_000):
        for i, array in enumerate(service.arrays(5, size)):
            assert array.shape == (size,)
            assert (array == i).all()


def test_large_items_do_not_pile_up(service: atoll.Service) -> None:
    """A batch of them is bounded in bytes."""
    before = service.rss()
    assert sum(len(text) for text in service.texts(400, 1_000_000)) == 400_000_000
    assert service.rss() - before < 60_000  # kB


def test_memory_is_flat(service: atoll.Service) -> None:
    def own() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    def run_through(n: int) -> None:
        for x in service.count(0) if n == 0 else itertools.islice(service.endless(), n):
            assert x >= 0

    run_through(20_000)
    before = own(), service.rss()
    run_through(200_000)
    assert own() - before[0] < 8_000  # kB
    assert service.rss() - before[1] < 8_000
    assert borrowed(service) == 0


def test_the_worker_dies(service: atoll.Service, run: Run) -> None:
    found = []
    with pytest.raises(atoll.WorkerDied):
        collect(service.dying(), found)
    assert found[0] == 1
    stream = service.count(10**9)
    assert next(stream) == 0
    pid = service.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(atoll.WorkerDied):
        list(stream)
    assert list(stream) == []
    assert list(service.count(3)) == [0, 1, 2]
    stream = service.count(10**9)
    next(stream)
    pid = service.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: service.pid != pid)
    stream.close()  # nothing to end

    async def main() -> None:
        with pytest.raises(atoll.WorkerDied):
            await collect_async(service.dying.aio(), [])

    run(main())


def test_the_timeout_is_of_each_batch(
    service: atoll.Service, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    pass_once(monkeypatch, begun.exists)
    stream = service.hanging.options(timeout=0.3)(str(begun))
    assert next(stream) == 1
    with pytest.raises(atoll.CallTimeout):
        next(stream)
    assert list(stream) == []
    assert list(service.count(2)) == [0, 1]
    begun.unlink()

    async def main() -> None:
        found = []
        with pytest.raises(atoll.CallTimeout):
            await collect_async(service.hanging.options(timeout=0.3).aio(str(begun)), found)
        assert found == [1]

    run(main())


def test_a_stream_that_is_never_read(service: atoll.Service) -> None:
    for name in ("count", "count_async"):
        service.function(name)(10)
        until(lambda: borrowed(service) == 0)
        assert service.taken() == []  # not begun, so there is nothing to end


def test_a_stream_that_is_never_awaited_does_not_begin(service: atoll.Service, run: Run) -> None:
    async def main() -> None:
        service.start()
        pending = service.count.aio(10)
        pending.close()

    run(main())
    assert service.taken() == []


def test_async_for_before_anything_started(run: Run) -> None:
    @atoll.function
    def double(x: int) -> int:
        return 2 * x

    @atoll.function
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    async def main() -> None:
        found: list[int] = []
        await collect_async(count.aio(10), found)
        await collect_async(count.aio(10), found)
        assert found == [*range(10), *range(10)]
        pending: Any = double.aio(1)
        with pytest.raises(TypeError):
            await collect_async(pending, found)
        assert await pending == 2

    run(main())


def test_one_stream_on_several_threads(service: atoll.Service) -> None:
    stream = service.count(5000)
    found: list[int] = []
    failures: list[BaseException] = []

    def consume() -> None:
        try:
            for x in stream:
                found.append(x)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=consume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert sorted(found) == list(range(5000))


def test_streams_on_several_workers_at_a_time(write: Write) -> None:
    with atoll.Service(write("streaming.py", SERVICE), workers=2, concurrency=2) as service:
        service.start()
        results: list[bool] = []

        def consume(name: str) -> None:
            results.append(list(service.function(name)(2000)) == list(range(2000)))

        names = ["count", "count_async"] * 4
        threads = [threading.Thread(target=consume, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == [True] * len(names)


def test_break_with_several_calls_at_a_time(write: Write) -> None:
    with atoll.Service(write("streaming.py", SERVICE), concurrency=2) as service:
        for name in ("count", "count_async"):
            service.forget()
            for _ in service.function(name)(10**9):
                break
            until(lambda: service.taken()[-1] == "finally")


# -- iterators as arguments ----------------------------------------------------------------------------------------


class Source:
    """Counts how far it was read."""

    def __init__(self, end: int) -> None:
        self.made = 0
        self.end = end
        self.closed = False

    def numbers(self) -> Iterator[int]:
        try:
            while self.made < self.end:
                self.made += 1
                yield self.made
        finally:
            self.closed = True

    async def numbers_async(self) -> AsyncIterator[int]:
        try:
            while self.made < self.end:
                await asyncio.sleep(0)
                self.made += 1
                yield self.made
        finally:
            self.closed = True


@pytest.mark.parametrize("function", ["total", "total_async"])
@pytest.mark.parametrize("count", [0, 1, 3000])
def test_an_iterator_as_argument(service: atoll.Service, function: str, count: int) -> None:
    total = service.function(function)
    expected = count * (count + 1) // 2
    assert total(Source(count).numbers()) == expected
    assert total(Source(count).numbers_async()) == expected
    assert total(iter(range(count + 1))) == expected
    assert total(map(int, map(str, range(count + 1)))) == expected
    until(lambda: lent(service) == 0)


@pytest.mark.parametrize("function", ["total", "total_async"])
def test_an_iterator_as_argument_on_a_loop(service: atoll.Service, run: Run, function: str) -> None:
    async def main() -> None:
        total = service.function(function)
        assert await total.aio(Source(3000).numbers()) == 4501500
        assert await total.aio(Source(3000).numbers_async()) == 4501500

    run(main())
    until(lambda: lent(service) == 0)


def test_nested_iterators(service: atoll.Service) -> None:
    assert service.nested_total({"a": [iter([1, 2])], "b": Source(10).numbers()}) == [3, 55]


def test_no_more_is_read_than_is_used(service: atoll.Service) -> None:
    source = Source(10**9)
    assert service.first(source.numbers(), 5) == [1, 2, 3, 4, 5]
    assert source.made <= 16  # batches grow
    source = Source(10**9)
    assert service.first(source.numbers_async(), 5) == [1, 2, 3, 4, 5]
    assert source.made <= 16
    until(lambda: lent(service) == 0 and source.closed)


def test_the_rest_of_an_iterator_is_the_callers(service: atoll.Service) -> None:
    numbers = Source(10**9).numbers()
    assert service.first(numbers, 1) == [1]
    assert service.first(numbers, 1)[0] > 1


def test_an_iterator_that_raises(service: atoll.Service) -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("no more")

    found, message, name = service.caught(failing())
    assert found == [1, 2]
    assert message == "no more"
    assert name == "LookupError"
    with pytest.raises(LookupError, match="no more"):
        service.total(failing())
    assert service.double(1) == 2


def test_a_stream_made_of_a_stream(service: atoll.Service, run: Run) -> None:
    """The generator over there reads the host's iterator whenever it is read itself, by whichever call."""
    assert list(service.through(iter(range(2000)))) == [2 * x for x in range(2000)]
    assert list(service.through(service.through(iter(range(200))))) == [4 * x for x in range(200)]
    source = Source(10**9)
    assert list(itertools.islice(service.through(source.numbers()), 3)) == [2, 4, 6]
    assert source.made < 100

    async def main() -> None:
        assert [x async for x in service.through.aio(iter(range(200)))] == [2 * x for x in range(200)]
        assert [x async for x in service.through.aio(Source(200).numbers_async())] == [2 * x for x in range(1, 201)]

    run(main())


def test_the_stream_of_one_service_goes_to_another(service: atoll.Service, write: Write) -> None:
    with atoll.Service(write("other.py", SERVICE)) as other:
        assert other.total(service.count(1000)) == 499_500
        assert service.total(other.through(service.count(100))) == 9900


def test_an_iterator_that_is_kept(service: atoll.Service) -> None:
    service.keep(Source(3).numbers())
    assert service.next_of_kept() == 1
    assert service.next_of_kept() == 2
    assert lent(service) == 1
    service.drop_kept()
    until(lambda: lent(service) == 0)


def test_large_items_as_arguments(service: atoll.Service) -> None:
    arrays = (numpy.full(300_000, i) for i in range(10))
    assert [array[0] for array in service.first(arrays, 10)] == list(range(10))


def test_an_iterator_that_calls(service: atoll.Service) -> None:
    assert service.total(service.double(x) for x in range(100)) == 9900


def test_the_worker_dies_while_it_reads(service: atoll.Service) -> None:
    source = Source(10**9)

    def numbers() -> Iterator[int]:
        yield from source.numbers()

    def deadly() -> Iterator[int]:
        yield 1
        pid = service.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        yield 2

    with pytest.raises(atoll.WorkerDied):
        service.total(deadly())
    assert service.total(itertools.islice(numbers(), 3)) == 6


@pytest.mark.parametrize("burst", [1, 5])
def test_a_burst_arrives_before_the_pause_after_it(burst: int, tmp_path: Path) -> None:
    """The generator goes on only once the consumer has all of the burst."""

    @atoll.function
    def bursts(folder: str, count: int, burst: int) -> Iterator[int]:
        import os
        import time

        for number in range(count):
            yield from range(burst)
            while not os.path.exists(f"{folder}/{number}"):
                time.sleep(0.001)

    try:
        stream = bursts.options(timeout=30)(str(tmp_path), 3, burst)
        for number in range(3):
            assert [next(stream) for _ in range(burst)] == list(range(burst))
            (tmp_path / str(number)).touch()
        assert list(stream) == []
    finally:
        bursts.close()
