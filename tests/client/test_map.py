# SPDX-License-Identifier: Apache-2.0
"""``map``: the results of many calls, in order or as they come; lazily, in batches, on all workers."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from conditions import until

MAPPED = '''\
import os, sys, time
from pathlib import Path
from atoll_worker import Service, expose

folder = Path(os.environ["FOLDER"])

class Mapped(Service):
    def setup(self):
        self.calls = 0

    @expose
    def square(self, number):
        self.calls += 1
        return number * number

    @expose
    def add(self, one, two, three=0):
        return one + two + three

    @expose
    def made(self):
        """How often square was called here."""
        return self.calls

    @expose
    def whoami(self, seconds):
        time.sleep(seconds)
        return os.getpid()

    @expose
    def meet(self, count):
        """Returns once so many workers are in it."""
        (folder / f"met-{os.getpid()}").touch()
        while len(list(folder.glob("met-*"))) < count:
            time.sleep(0.002)
        return os.getpid()

    @expose
    def hold(self, name):
        """Returns once there is a file of this name."""
        (folder / f"held-{name}").touch()
        while not (folder / name).exists():
            time.sleep(0.002)
        return name

    @expose
    def divide(self, number):
        return 10 / number

    @expose(idempotent=True)
    def die_at(self, number, at):
        mark = folder / "died"
        if number == at and not mark.exists():
            mark.touch()
            os._exit(5)
        return number

    @expose
    def blob(self, size):
        return b"\\1" * size
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mapped.py").write_text(MAPPED)
    return tmp_path / "mapped.py"


@pytest.fixture
def service(file: Path) -> Iterator[Any]:
    with atoll.Service(file, workers=2, env_vars={"FOLDER": str(file.parent)}) as service:
        yield service


def drained(results: Iterator[Any]) -> tuple[list[Any], BaseException | None]:
    """All results until the end or an error, and that."""
    got = []
    try:
        for result in results:
            got.append(result)
    except Exception as error:
        return got, error
    return got, None


def test_in_order(service: Any) -> None:
    assert list(service.square.map(range(5000))) == [number * number for number in range(5000)]


def test_as_they_come(service: Any) -> None:
    assert sorted(service.square.map(range(5000), ordered=False)) == [number * number for number in range(5000)]


def test_as_they_come_a_slow_item_holds_up_none(service: Any, file: Path) -> None:
    """The first item lasts until all others' results were taken."""
    (file.parent / "b").touch()
    (file.parent / "c").touch()
    results = service.hold.map(["a", "b", "c", "b", "c"], ordered=False)
    assert sorted(next(results) for _ in range(4)) == ["b", "b", "c", "c"]
    (file.parent / "a").touch()
    assert list(results) == ["a"]


def test_several_iterables_as_with_the_builtin(service: Any) -> None:
    assert list(service.add.map([1, 2, 3], [10, 20, 30])) == [11, 22, 33]
    assert list(service.add.map([1, 2, 3], [10, 20], itertools.count(100))) == [111, 123]
    assert list(service.square.map([])) == []


def test_nothing_is_taken_before_it_is_asked_for_and_little_ahead(service: Any) -> None:
    taken = itertools.count()
    last = 0

    def numbers() -> Iterator[int]:
        nonlocal last
        for number in taken:
            last = number
            yield number

    results = service.square.map(numbers())
    assert last == 0
    assert next(taken) == 0  # nobody took one
    assert next(results) == 1
    assert last < 100
    assert list(itertools.islice(results, 20_000)) == [number * number for number in range(2, 20_002)]
    results.close()
    ahead = last
    assert ahead < 20_002 + 4 * 2 * 10_000


def test_batches_grow_for_quick_items(service: Any) -> None:
    """A call for each item would be as many calls as items."""
    assert sum(1 for _ in service.square.map(range(50_000))) == 50_000
    (square,) = [one for name, one in service.status().functions.items() if name == "square"]
    assert square.calls < 5000
    assert sum(worker.calls for worker in service.status().workers) < 5000


def test_items_of_uneven_length_spread_over_all_workers(service: Any) -> None:
    """After many quick ones, which made the batches large, those that take long are in one batch at first."""
    seconds = [0.0] * 3000 + [0.06] * 20
    pids = list(service.whoami.map(seconds))
    assert len(pids) == 3020
    assert len(set(pids[3000:])) == 2


def test_a_short_queue_is_long_enough(file: Path) -> None:
    with atoll.Service(file, max_queue=1, workers=2, env_vars={"FOLDER": str(file.parent)}) as service:
        assert list(service.square.map(range(1000))) == [number * number for number in range(1000)]


def test_all_workers_work_at_once(service: Any) -> None:
    assert len(set(service.meet.map([2, 2]))) == 2


@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_comes_after_the_results_before_it_and_ends_it(service: Any, ordered: bool) -> None:
    results = service.divide.map([*range(1, 500), 0, *range(1, 500)], ordered=ordered)
    got, error = drained(results)
    if ordered:
        assert got == [10 / number for number in range(1, 500)]
    assert isinstance(error, ZeroDivisionError)
    assert isinstance(error, atoll.RemoteError)
    assert "mapped.py" in error.remote_traceback
    assert list(results) == []
    assert service.square(3) == 9


def test_an_iterable_that_raises(service: Any) -> None:
    def numbers() -> Iterator[int]:
        yield from range(10)
        raise RuntimeError("no more")

    got, error = drained(service.square.map(numbers()))
    assert str(error) == "no more"
    assert got == [number * number for number in range(len(got))]
    assert service.square(3) == 9


def test_an_item_that_cannot_cross_is_an_error_of_its_batch(service: Any) -> None:
    with pytest.raises(atoll.EncodeError):
        list(service.square.map([1, object(), 2]))
    assert list(service.square.map([1, 2])) == [1, 4]


def test_a_function_that_there_is_not(service: Any) -> None:
    with pytest.raises(atoll.FunctionNotFound):
        list(service.function("nothing").map([1]))


def test_the_timeout_is_that_of_an_item(service: Any) -> None:
    """Thirty items of 0.1 s each have two seconds each, not all together; one that takes longer is late."""
    whoami = service.whoami.options(timeout=2.0)
    assert len(list(whoami.map([0.1] * 60))) == 60
    with pytest.raises(atoll.CallTimeout):
        list(whoami.map([0.0, 0.0, 30.0, 0.0]))
    assert service.square(3) == 9


def test_the_items_are_taken_by_the_thread_that_takes_the_results(service: Any) -> None:
    threads = set()

    def numbers() -> Iterator[int]:
        for number in range(3000):
            threads.add(threading.current_thread())
            yield number

    assert len(list(service.square.map(numbers()))) == 3000
    assert threads == {threading.current_thread()}


def test_closing_early_ends_what_is_under_way(service: Any, file: Path) -> None:
    """Also a call that would never end by itself; the items are asked for no more."""
    results = service.hold.map(itertools.chain(["a"], itertools.repeat("never")))
    (file.parent / "a").touch()
    assert next(results) == "a"
    until(lambda: (file.parent / "held-never").exists())
    results.close()
    assert service.square(3) == 9
    until(lambda: service.status().in_flight == 0)


def test_breaking_out_of_the_loop(service: Any) -> None:
    for result in service.square.map(itertools.count()):
        if result > 100:
            break
    assert service.square(3) == 9


def test_several_at_once(service: Any) -> None:
    wrong: list[Any] = []

    def take(start: int) -> None:
        expected = [number * number for number in range(start, start + 5000)]
        if list(service.square.map(range(start, start + 5000))) != expected:
            wrong.append(start)

    threads = [threading.Thread(target=take, args=(number * 1000,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_one_inside_of_another(service: Any) -> None:
    totals = [sum(service.square.map(range(number))) for number in service.square.map(range(20))]
    assert totals == [sum(one * one for one in range(number * number)) for number in range(20)]


def test_a_call_beside_it_gets_its_turn(service: Any) -> None:
    results = service.square.map(itertools.count())
    for _ in range(20):
        next(results)
        assert service.square(3) == 9
    results.close()


def test_a_worker_that_dies_in_the_middle(service: Any) -> None:
    """The results before are there, the error follows, and the service works again."""
    got, error = drained(service.die_at.map(range(300), itertools.repeat(200)))
    assert isinstance(error, atoll.WorkerDied)
    assert error.exit_code == 5
    assert got == list(range(len(got)))
    assert len(got) <= 200
    assert list(service.square.map(range(10))) == [number * number for number in range(10)]


def test_with_retries_the_batch_of_the_dead_is_made_again(service: Any) -> None:
    mapped = service.die_at.options(retries=1).map(range(300), itertools.repeat(200))
    assert list(mapped) == list(range(300))


def test_memory_stays_bounded(service: Any) -> None:
    """400 results of a megabyte each pass through; a few are here at a time."""
    tracemalloc.start()
    try:
        for blob in service.blob.map(itertools.repeat(1_000_000, 400)):
            assert len(blob) == 1_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000


def test_closing_the_service_ends_it(file: Path) -> None:
    service: Any = atoll.Service(file, env_vars={"FOLDER": str(file.parent)})
    results = service.square.map(itertools.count())
    next(results)
    service.close()
    with pytest.raises(atoll.ServiceClosed):
        for _ in results:
            pass


def test_of_a_function() -> None:
    @atoll.function
    def double(number: int) -> int:
        return 2 * number

    assert list(double.map(range(100))) == list(range(0, 200, 2))


def test_an_error_of_the_source_comes_after_the_results_before_it(service: atoll.Service) -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("no more")

    for ordered in (True, False):
        results, error = drained(service.square.map(source(), ordered=ordered))
        assert sorted(results) == [1, 4]
        assert isinstance(error, OSError)
