# SPDX-License-Identifier: Apache-2.0
"""``@atoll.function``: every way to call one gives what the plain function would, and it ends when it is told to."""

from __future__ import annotations

import asyncio
import copy
import inspect
import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool.options import Cancellation
from conditions import until


@pytest.fixture
def combine() -> atoll.Function[..., Any]:
    @atoll.function
    def combine(a, /, b, c=3, *rest, d, e="e", **more):  # type: ignore[no-untyped-def]
        """What came."""
        return a, b, c, rest, d, e, more

    return combine


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1, 2), {"d": 4}),
        ((1,), {"b": 2, "d": 4}),
        ((1, 2, 30, 40, 50), {"d": 4, "e": "f"}),
        ((1,), {"b": 2, "c": 9, "d": 4, "a": "also a name of its own", "z": None}),
    ],
)
def test_arguments_mean_what_they_mean_in_a_local_call(
    combine: atoll.Function[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert combine(*args, **kwargs) == combine.local(*args, **kwargs)


def test_a_call_that_does_not_fit_is_the_functions_own_type_error(combine: atoll.Function[..., Any]) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        combine(1, d=2)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'd'"):
        combine(1, 2)
    assert combine(1, 2, d=3)[4] == 3


def test_argument_names_that_the_callers_own_parameters_have() -> None:
    @atoll.function
    def f(self, function, args, kwargs, timeout, name):  # type: ignore[no-untyped-def]
        return self, function, args, kwargs, timeout, name

    assert f(self=1, function=2, args=3, kwargs=4, timeout=5, name=6) == (1, 2, 3, 4, 5, 6)


def test_it_runs_in_a_process_of_its_own_and_local_does_not() -> None:
    @atoll.function
    def where() -> int:
        import os

        return os.getpid()

    assert where() == where.pid != os.getpid()
    assert where.local() == os.getpid()


def test_the_worker_starts_with_the_first_call_or_start() -> None:
    @atoll.function
    def f() -> None:
        return None

    assert f.pid is None
    f.start()
    pid = f.pid
    assert pid is not None
    f()
    f.start()
    assert f.pid == pid


def test_the_wrapper_looks_like_the_function() -> None:
    @atoll.function(name="other", timeout=7.0)
    def documented(x: int) -> int:
        """Documented."""
        return x

    assert documented.__name__ == "documented"
    assert documented.__qualname__.endswith("<locals>.documented")
    assert documented.__doc__ == "Documented."
    assert documented.__module__ == __name__
    assert documented.__wrapped__ is documented.local  # type: ignore[attr-defined]
    assert "documented" in repr(documented)
    assert str(inspect.signature(documented)) == "(x: 'int') -> 'int'"
    assert documented.spec.name == "other"
    assert documented.spec.timeout == 7.0


def test_unknown_and_wrong_options_are_refused_at_decoration() -> None:
    with pytest.raises(atoll.ManifestError, match="dependancies"):
        atoll.function(dependancies=["x"])(lambda: 1)  # type: ignore[call-overload]
    with pytest.raises(atoll.ManifestError, match="timeout"):
        atoll.function(timeout=-1)(lambda: 1)


def test_options_apply_to_their_own_calls_only() -> None:
    @atoll.function
    def nap(seconds: float) -> str:
        import time

        time.sleep(seconds)
        return "slept"

    hasty = nap.options(timeout=0.05)
    assert nap(0.1) == "slept"
    with pytest.raises(atoll.CallTimeout):
        hasty(30)
    assert nap(0.1) == "slept"
    assert nap.options(timeout=None)(0.0) == "slept"


@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan"), "2", True])
def test_wrong_options_are_refused(wrong: Any) -> None:
    @atoll.function
    def f() -> None:
        return None

    with pytest.raises(atoll.ManifestError, match="timeout"):
        f.options(timeout=wrong)


def test_submitted_calls_run_in_order_beside_the_caller() -> None:
    @atoll.function
    def append(path: str, number: int) -> int:
        with open(path, "a") as file:
            file.write(f"{number}\n")
        return number * number

    import tempfile

    with tempfile.NamedTemporaryFile("r") as file:
        futures = [append.submit(file.name, number) for number in range(50)]
        assert [future.result(30) for future in futures] == [number**2 for number in range(50)]
        assert file.read().split() == [str(number) for number in range(50)]


def test_a_submitted_call_raises_where_its_result_is_asked_for() -> None:
    @atoll.function
    def fail() -> None:
        raise KeyError("nothing")

    future = fail.submit()
    assert isinstance(future.exception(30), KeyError)
    with pytest.raises(KeyError, match="nothing"):
        future.result()


@pytest.mark.usefixtures("unhurried")
def test_a_submitted_call_can_be_cancelled_before_it_begins_and_while_it_runs(tmp_path: Path) -> None:
    @atoll.function
    def wait_for(path: str) -> str:
        import os
        import time

        open(path + ".begun", "w").close()
        while not os.path.exists(path):
            time.sleep(0.002)
        return path

    go, never = tmp_path / "go", str(tmp_path / "never")
    wait_for.start()
    pid = wait_for.pid
    running = wait_for.submit(never)
    waiting = wait_for.submit(never)
    last = wait_for.submit(str(go))
    until((tmp_path / "never.begun").exists)  # it runs here some moments before it does over there
    assert running.running()
    assert waiting.cancel()
    assert waiting.cancelled()
    assert not running.done()  # it is another call
    assert running.cancel()
    with pytest.raises(atoll.CallCancelled, match=r"wait_for\.wait_for was cancelled") as caught:
        running.result(30)
    assert caught.value.rung == "exception"  # sleeping Python code needed no more
    assert running.cancelled()
    assert not running.cancel()  # it has ended already
    for call in (running, waiting):
        with pytest.raises(CancelledError):
            call.result(1)
    assert not last.done()
    go.touch()
    assert last.result(30) == str(go)
    assert not last.cancel()
    assert not last.cancelled()
    assert wait_for(str(go)) == str(go)
    assert wait_for.pid == pid  # the worker went on


def test_a_call_that_is_cancelled_in_the_moment_it_begins_is_not_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever cancels it then finds no call that could be ended; so it must not begin."""

    @atoll.function
    def note(path: str) -> None:
        import time

        open(path, "w").close()
        time.sleep(600)

    begins = Cancellation.begins

    def begins_late(self: Cancellation, *args: Any) -> Any:
        self.cancel()
        return begins(self, *args)

    monkeypatch.setattr(Cancellation, "begins", begins_late)
    made = tmp_path / "made"
    with pytest.raises(atoll.CallCancelled):
        note.submit(str(made)).result(60)
    assert not made.exists()
    monkeypatch.undo()
    assert note.status().in_flight == 0


def test_map_is_in_order_over_several_iterables_and_the_shortest_ends_it() -> None:
    @atoll.function
    def power(base: int, exponent: int) -> int:
        return base**exponent

    assert list(power.map(range(10), itertools.repeat(2))) == [n * n for n in range(10)]
    assert list(power.map([2, 3, 4], [1, 2])) == [2, 9]
    assert list(power.map([], [1])) == []


def test_map_is_lazy() -> None:
    @atoll.function
    def double(x: int) -> int:
        return 2 * x

    taken = []

    def endless() -> Any:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = double.map(endless())
    assert taken == []
    assert next(results) == 0
    assert len(taken) <= 1 + 2 + 4  # a batch runs, one waits, one is on its way in place of the first
    # However quick the items are, what was taken and not given out is a few batches; one doubles the last at most.
    for number in range(1, 2000):
        assert next(results) == 2 * number
        assert len(taken) <= 16 * (number + 1)
    there = len(taken)
    results.close()  # type: ignore[attr-defined]
    assert double(5) == 10
    assert len(taken) == there


def test_the_first_error_ends_a_map() -> None:
    @atoll.function
    def invert(x: int) -> float:
        return 1 / x

    results = invert.map([1, 2, 0, 4])
    assert next(results) == 1.0
    assert next(results) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    assert invert(4) == 0.25


def test_the_iterables_own_error_ends_a_map() -> None:
    @atoll.function
    def same(x: int) -> int:
        return x

    def items() -> Any:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(same.map(items()))
    assert same(3) == 3


def test_awaited() -> None:
    @atoll.function
    def add(a: int, *, b: int = 2) -> int:
        return a + b

    async def main() -> list[int]:
        return [await add.aio(1), await add.aio(1, b=5), await add.options(timeout=9).aio(4)]

    assert asyncio.run(main()) == [3, 6, 6]


def test_many_threads_each_get_their_own_answers() -> None:
    @atoll.function
    def echo(value: tuple[int, int]) -> tuple[int, int]:
        return value

    wrong: list[object] = []

    def call(thread: int) -> None:
        for number in range(300):
            try:
                if echo((thread, number)) != (thread, number):
                    wrong.append((thread, number))
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_the_order_of_service_is_the_order_of_arrival(tmp_path: Path) -> None:
    @atoll.function
    def note(path: str, number: int) -> None:
        import os
        import time

        while not os.path.exists(path + ".go"):
            time.sleep(0.002)
        with open(path, "a") as file:
            file.write(f"{number} ")

    log = tmp_path / "log"
    note.start()
    threads = []
    for number in range(6):
        thread = threading.Thread(target=note, args=(str(log), number))
        thread.start()
        threads.append(thread)
        until(lambda n=number: (note.status().in_flight, note.status().queue) == (1, n))
    (tmp_path / "log.go").touch()
    for thread in threads:
        thread.join(30)
    assert log.read_text().split() == ["0", "1", "2", "3", "4", "5"]


def test_recursion_and_other_functions_are_the_workers_own() -> None:
    @atoll.function
    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    assert factorial(20) == 2432902008176640000


def test_two_functions_called_from_each_others_callbacks() -> None:
    @atoll.function
    def outer(x: int) -> int:
        return x + 1

    @atoll.function
    def inner(x: int) -> int:
        return x * 10

    # Arguments are encoded while the turn is held: iterating over another remote function's map must not deadlock.
    assert list(outer.map(inner.map(outer.map(range(5))))) == [11, 21, 31, 41, 51]


def test_state_of_the_worker_stays_from_call_to_call() -> None:
    @atoll.function
    def count() -> int:
        global total
        total = globals().get("total", 0) + 1
        return total

    assert [count() for _ in range(3)] == [1, 2, 3]


class Nosy:
    """A class of the user's own that calls the function it is passed to, while it is passed."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call


def test_a_call_in_the_middle_of_itself_is_an_error_and_does_not_hang() -> None:
    @atoll.function
    def f(value: object) -> object:
        return value

    def encode(nosy: Nosy) -> object:
        nosy.call()
        return "encoded"

    atoll.register(Nosy, name="test_function.Nosy", encode=encode, decode=lambda _: Nosy(int))
    f(0)
    with pytest.raises(atoll.AtollError, match="it would wait for itself"):
        f(Nosy(lambda: f(1)))
    assert f(2) == 2

    async def main() -> None:
        with pytest.raises(atoll.AtollError, match=r"await the \.aio\(\) of the function here too"):
            await f.aio(Nosy(lambda: f(1)))

    asyncio.run(main())
    assert f(3) == 3


def test_a_signal_handler_that_calls_what_it_interrupted(tmp_path: Path) -> None:
    @atoll.function
    def wait_for(path: str) -> str:
        import os
        import time

        open(path + ".begun", "w").close()
        while not os.path.exists(path):
            time.sleep(0.002)
        return path

    go = tmp_path / "go"
    seen: list[BaseException] = []

    def handler(*_: object) -> None:
        try:
            wait_for(str(go))
        except atoll.AtollError as error:
            seen.append(error)
        go.touch()

    def interrupt() -> None:
        until((tmp_path / "go.begun").exists)
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handler)
    interrupting = threading.Thread(target=interrupt)
    try:
        wait_for.start()
        interrupting.start()
        assert wait_for(str(go)) == str(go)
        interrupting.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(seen) == 1
    assert "it would wait for itself" in str(seen[0])


def test_a_call_that_blocks_the_loop_of_an_earlier_one_is_an_error(tmp_path: Path) -> None:
    @atoll.function
    def wait_for(path: str) -> str:
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.002)
        return path

    go = tmp_path / "go"

    async def main() -> None:
        await asyncio.to_thread(wait_for.start)
        tasks = [asyncio.create_task(wait_for.aio(str(go))) for _ in range(2)]
        while wait_for._pool.waiting < 1:
            await asyncio.sleep(0.001)
        with pytest.raises(atoll.AtollError, match="blocks the event loop"):
            wait_for(str(go))
        go.touch()
        assert await asyncio.gather(*tasks) == [str(go)] * 2
        assert wait_for(str(go)) == str(go)

    asyncio.run(main())


def test_what_holds_a_worker_is_not_pickled(tmp_path: Path) -> None:
    """Neither a function, nor one of a service, nor a service; they are not copied either."""

    @atoll.function
    def f() -> int:
        return 1

    file = tmp_path / "service.py"
    file.write_text("from atoll_worker import expose\n@expose\ndef g(): ...\n")
    service = atoll.Service(file)
    for thing in (f, f.options(timeout=5), service, service.function("g")):
        for refused in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"holds a worker of this process.*define it where it is used"):
                refused(thing)
