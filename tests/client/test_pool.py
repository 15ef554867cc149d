# SPDX-License-Identifier: Apache-2.0
"""A pool as its users see it: side by side, status, scaling, new code, recycling, a full queue, the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool import supervisor, waiting
from atoll.processes import tree_rss, warden
from client.gates import Callers, Gates
from conditions import WITHIN, is_gone, until, until_gone

Write = Callable[[str, str], Path]


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path / "gates")


def ready(service: atoll.Service) -> list[int]:
    """Process ids of the workers that take calls."""
    return [worker.pid for worker in service.status().workers if worker.state == "ready"]


# -- several workers -----------------------------------------------------------------------------------------------


def test_workers_start_side_by_side(write: Write, tmp_path: Path) -> None:
    """Each is ready only once all of them run: one after another, none ever would be."""
    file = write(
        "meeting.py",
        """\
        import os, time
        from pathlib import Path
        from atoll_worker import expose

        folder = Path(os.environ["FOLDER"])
        (folder / f"met-{os.getpid()}").touch()
        while len(list(folder.glob("met-*"))) < 3:
            time.sleep(0.002)

        @expose
        def whoami():
            return os.getpid()
        """,
    )
    with atoll.Service(file, workers=3, env_vars={"FOLDER": str(tmp_path)}, start_timeout=WITHIN) as service:
        assert len(set(ready(service))) == 3
        assert service.whoami() in ready(service)
        assert service.pid in ready(service)


def test_calls_run_side_by_side_and_a_worker_takes_one_at_a_time(gates: Gates) -> None:
    with atoll.Service(gates.file, workers=3, **gates.options) as service:
        calls = [service.function("meet").submit(3) for _ in range(3)]
        assert sorted(call.result(30) for call in calls) == sorted(ready(service))


def test_without_start_the_first_call_starts_them(gates: Gates) -> None:
    service = atoll.Service(gates.file, workers=2, **gates.options)
    assert service.status().state == "new"
    assert service.status().workers == ()
    assert service.echo(1) == 1
    until(lambda: len(ready(service)) == 2)
    service.close()
    assert service.status().state == "closed"


def test_it_is_closed_as_soon_as_it_is_said(gates: Gates) -> None:
    """Though what decides over workers hears of it later, perhaps after all of them have ended."""
    go = threading.Event()

    def busy() -> None:
        go.wait(WITHIN)

    with atoll.Service(gates.file, **gates.options) as service:
        warden().post(busy)
        try:
            service._pool.hang_up()
            assert service.status().state == "closed"
        finally:
            go.set()


def test_what_the_first_call_fills_it_with_is_growth(gates: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a worker gets it as soon as it can be called: what it holds is looked at before."""
    callable_then = []

    def look(pid: int) -> int:
        callable_then.append(service._pool.workers)
        return tree_rss(pid)

    monkeypatch.setattr(supervisor, "tree_rss", look)
    service = atoll.Service(gates.file, **gates.options)
    assert service.echo(1) == 1
    assert callable_then == [[]]
    service.close()


def test_status(gates: Gates) -> None:
    with atoll.Service(gates.file, workers=2, **gates.options) as service:
        held = [service.function("hold").submit() for _ in range(2)]
        until(lambda: gates.held == 2)
        queued = service.function("whoami").submit()
        direct = Callers(1, service.whoami)
        with direct:
            until(lambda: service.status().queue == 2)
            status = service.status()
            gates.open()
        assert (status.service, status.state, status.in_flight, status.restarts) == ("gated", "running", 2, 0)
        assert {call.result(30) for call in held} == {worker.pid for worker in status.workers}
        assert queued.result(30) in ready(service)
        for worker in status.workers:
            assert (worker.state, worker.in_flight) == ("ready", 1)
            assert worker.rss > 1_000_000
            assert worker.cpu > 0
            assert worker.age > 0
        text = str(status)
        assert text.startswith("gated: running, 2 workers, 2 calls in flight, 2 waiting, 0 restarts\n")
        assert all(f"pid {worker.pid}: ready, 1 in flight" in text for worker in status.workers)
        until(lambda: service.status().in_flight == 0)
        after = service.status()
        assert sum(worker.calls for worker in after.workers) == 3 + len(direct.results)
        assert after.queue == 0


def test_latency_by_function(gates: Gates) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        assert service.status().latency == (0, None, None, None)
        for _ in range(99):
            service.echo(1)
        service.sleep(0.3)
        service.sleep(0.3)
        with contextlib.suppress(ValueError):
            service.fail()
        assert list(service.functions)
        latency, functions = service.status().latency, service.status().functions
        assert set(functions) == {"echo", "sleep", "fail"}
        assert latency.calls == 102
        assert functions["echo"].calls == 99
        assert latency.p50 is not None
        assert latency.p95 is not None
        assert latency.p99 is not None
        assert 0 < latency.p50 <= latency.p95 <= latency.p99
        slow = functions["sleep"].p50
        assert slow is not None
        assert slow > 0.25


def test_a_proxy_and_a_map_are_counted_under_the_users_names(gates: Gates) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        assert [number for number, _ in service.count(5)] == list(range(5))
        assert list(service.echo.map([1, 2])) == [1, 2]
        names = {
            sample.labels["function"]
            for metric in service.metrics()
            for sample in metric.samples
            if "function" in sample.labels
        }
        assert names == {"count", "echo"}
        assert service.status().functions.keys() == names


# -- scaling -------------------------------------------------------------------------------------------------------


def test_it_grows_under_load_and_shrinks_to_zero_and_begins_anew(gates: Gates) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        first = service.pid
        service.scale(min=0, max=3)
        calls = [service.function("hold").submit() for _ in range(6)]
        until(lambda: gates.held == 3)
        assert len(service.status().workers) == 3  # and no more than that, though six calls wait
        service.scale(min=0, max=3, idle=0.3)  # not before: the first one is idle until it gets its call
        gates.open()
        pids = {call.result(30) for call in calls}
        assert len(pids) == 3
        assert first in pids
        until(lambda: not service.status().workers)
        until_gone(*pids)
        assert service.pid is None
        assert service.whoami() not in pids
        assert service.status().restarts == 0


def test_a_minimum_is_started_at_once_and_kept(gates: Gates) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        service.scale(min=3, max=4, idle=0.1)
        until(lambda: len(ready(service)) == 3)
        service.scale(min=1, max=2)
        until(lambda: len(service.status().workers) == 1)
        assert service.whoami() in ready(service)


@pytest.mark.parametrize("bounds", [(-1, 2), (2, 1), (0, 0)])
def test_bounds_that_are_none(gates: Gates, bounds: tuple[int, int]) -> None:
    service = atoll.Service(gates.file, **gates.options)
    with pytest.raises(atoll.ManifestError, match=r"of scale: found|expected min <= max"):
        service.scale(*bounds)


def test_scaling_down_lets_a_call_that_runs_end(gates: Gates) -> None:
    with atoll.Service(gates.file, workers=3, **gates.options) as service:
        calls = [service.function("hold").submit() for _ in range(3)]
        until(lambda: gates.held == 3)
        pids = ready(service)
        service.scale(min=1, max=1)
        until(lambda: len(ready(service)) == 1)
        gates.open()
        assert sorted(call.result(30) for call in calls) == sorted(pids)
        until(lambda: len(service.status().workers) == 1)


# -- new code ------------------------------------------------------------------------------------------------------

VERSION = """\
import os, time
from atoll_worker import expose

@expose
def version():
    return NUMBER

@expose
def count(number):
    for one in range(number):
        yield NUMBER
"""


def test_reload_brings_new_code_and_fails_no_call(write: Write) -> None:
    file = write("versioned.py", VERSION.replace("NUMBER", "1"))
    with atoll.Service(file, workers=2) as service:
        old = ready(service)
        # The end of a stream is not fetched yet: more items than come with its first batches.
        stream = iter(service.count(3000))
        assert next(stream) == 1
        reloaded = threading.Event()
        # Each with whether it was begun after the reload: its thread may come to note the result much later.
        with Callers(8, lambda: (reloaded.is_set(), service.version())) as callers:
            until(lambda: len(callers.results) > 50)
            write("versioned.py", VERSION.replace("NUMBER", "2"))
            service.reload(timeout=60)
            reloaded.set()
            assert service.version() == 2
            until(lambda: callers.results.count((True, 2)) > 50)
        assert not callers.errors
        assert {number for _, number in callers.results} == {1, 2}
        assert {number for begun_after, number in callers.results if begun_after} == {2}
        assert list(stream) == [1] * 2999
        until_gone(*old)
        assert len(ready(service)) == 2
        assert not set(ready(service)) & set(old)
        assert service.status().restarts == 0


def test_a_stream_that_is_kept_open_holds_up_no_reload(write: Write) -> None:
    """On every worker one: each goes on with its old worker, beside the new ones."""
    file = write("versioned.py", VERSION.replace("NUMBER", "1"))
    with atoll.Service(file, workers=2) as service:
        old = ready(service)
        streams = [iter(service.count(3000)) for _ in range(8)]
        assert [next(stream) for stream in streams] == [1] * 8
        write("versioned.py", VERSION.replace("NUMBER", "2"))
        service.reload(timeout=60)
        assert service.version() == 2
        for stream in streams:
            assert list(stream) == [1] * 2999
        until_gone(*old)


def test_bad_new_code_is_an_error_and_the_old_workers_go_on(write: Write) -> None:
    file = write("versioned.py", VERSION.replace("NUMBER", "1"))
    with atoll.Service(file, workers=2) as service:
        old = ready(service)
        for text, words in (("1 / 0", "ZeroDivisionError"), ("def", "SyntaxError")):
            write("versioned.py", text)
            with pytest.raises(atoll.WorkerStartError, match=words):
                service.reload(timeout=60)
            assert [service.version() for _ in range(5)] == [1] * 5
            assert ready(service) == old
            assert len(service.status().workers) == 2  # and it is not tried again behind the user's back
            assert service.status().restarts == 0
        write("versioned.py", VERSION.replace("NUMBER", "3"))
        service.reload(timeout=60)
        assert [service.version() for _ in range(5)] == [3] * 5
        until_gone(*old)


def test_reload_before_the_first_call_and_after_the_end(gates: Gates) -> None:
    service = atoll.Service(gates.file, **gates.options)
    service.reload(timeout=60)
    assert service.echo(1) == 1
    service.close()
    with pytest.raises(atoll.ServiceClosed):
        service.reload(timeout=60)


@pytest.mark.network
@pytest.mark.slow
def test_reload_reads_the_header_anew(write: Write) -> None:
    text = """\
        # /// script
        # dependencies = ["idna==VERSION"]
        # ///
        import idna
        from atoll_worker import expose

        @expose
        def version():
            return idna.__version__
        """
    file = write("headed.py", text.replace("VERSION", "3.6"))
    with atoll.Service(file) as service:
        assert service.version() == "3.6"
        write("headed.py", text.replace("VERSION", "3.7"))
        with Callers(2, service.version) as callers:
            service.reload(timeout=120)
        assert service.version() == "3.7"
        assert not callers.errors
        assert set(callers.results) <= {"3.6", "3.7"}


# -- recycling -----------------------------------------------------------------------------------------------------


def replaced_first(gates: Gates) -> bool:
    """Whether each worker was ready before the one it replaced was torn down, by what they noted."""
    born = [pid for word, pid in gates.notes if word == "ready"]
    notes = gates.notes
    return all(
        notes.index(("ready", new)) < notes.index(("torn down", old))
        for old, new in pairwise(born)
        if ("torn down", old) in notes
    )


def test_recycling_after_so_many_calls(gates: Gates) -> None:
    with atoll.Service(gates.file, recycle=atoll.Recycle(calls=20), **gates.options) as service:
        with Callers(4, service.whoami) as callers:
            until(lambda: len(set(callers.results)) >= 4, within=60)
        assert not callers.errors
        until(lambda: len(service.status().workers) == 1)
        assert service.status().restarts == 0
        assert replaced_first(gates)


def test_calls_beyond_the_limit_do_not_pile_up_what_is_to_be_looked_at(gates: Gates) -> None:
    """Each asks for a look, and the thread that looks may get no processor meanwhile."""
    go = threading.Event()

    def busy() -> None:
        go.wait(WITHIN)

    with atoll.Service(gates.file, recycle=atoll.Recycle(calls=5), **gates.options) as service:
        assert service.echo(0) == 0
        warden().post(busy)
        try:
            for number in range(200):
                assert service.echo(number) == number
            assert len(warden()._commands) < 20
        finally:
            go.set()


def test_a_worker_that_ends_is_noticed_whatever_else_there_is_to_do(gates: Gates) -> None:
    done = threading.Event()

    def again() -> None:
        if not done.is_set():
            warden().post(again)

    with atoll.Service(gates.file, **gates.options) as service:
        pid = service.whoami()
        warden().post(again)
        try:
            os.kill(pid, signal.SIGKILL)
            until(lambda: service.pid != pid)
        finally:
            done.set()


def test_recycling_at_an_age(gates: Gates) -> None:
    with atoll.Service(gates.file, recycle={"age": 0.3}, **gates.options) as service:
        first = service.whoami()
        with Callers(2, service.whoami) as callers:
            until(lambda: len(set(callers.results)) >= 3, within=60)
        assert not callers.errors
        until_gone(first)
        assert replaced_first(gates)


def test_recycling_when_memory_has_grown(gates: Gates) -> None:
    with atoll.Service(gates.file, recycle={"memory_growth": "30MB"}, **gates.options) as service:
        first = service.whoami()
        service.grow(60_000_000)
        with Callers(2, service.whoami) as callers:
            until(lambda: set(callers.results) - {first}, within=60)
        assert not callers.errors
        until_gone(first)
        assert replaced_first(gates)


def test_a_worker_that_cannot_be_replaced_goes_on(write: Write) -> None:
    file = write("versioned.py", VERSION.replace("NUMBER", "1"))
    with atoll.Service(file, recycle={"calls": 5}) as service:
        first = service.pid
        file.write_text("1 / 0")
        with Callers(2, service.version) as callers:
            until(lambda: len(callers.results) > 300)
        assert not callers.errors
        assert ready(service) == [first]


# -- a full queue --------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_however_one_calls(gates: Gates) -> None:
    with atoll.Service(gates.file, max_queue=1, **gates.options) as service:
        with Callers(1, service.hold) as holding:
            until(lambda: gates.held == 1)
            with Callers(1, service.whoami) as waiting:
                until(lambda: service.status().queue == 1)
                expected = "gated.whoami was not queued: 1 calls wait for a worker already, and max_queue=1 allows no"
                with pytest.raises(atoll.QueueFull, match=expected):
                    service.whoami()
                with pytest.raises(atoll.QueueFull, match=expected):
                    asyncio.run(service.whoami.aio())
                with pytest.raises(atoll.QueueFull, match=expected):
                    service.whoami.submit().result(30)
                gates.open()
                until(lambda: waiting.results)
        assert set(holding.results) == set(waiting.results) == {service.pid}
        assert not holding.errors
        assert service.whoami() == service.pid


def test_submitting_more_than_may_wait(gates: Gates) -> None:
    with atoll.Service(gates.file, max_queue=2, **gates.options) as service:
        calls = [service.hold.submit()]
        until(lambda: gates.held == 1)
        calls += [service.hold.submit(), service.hold.submit()]
        with pytest.raises(atoll.QueueFull, match="max_queue=2 allows no more"):
            service.hold.submit()
        gates.open()
        assert [call.result(30) for call in calls] == [service.pid] * 3


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_order")
def test_closing_during_load(gates: Gates) -> None:
    """Every call gets its result, or is told that the service is closed; none hangs."""
    service = atoll.Service(gates.file, workers=2, **gates.options)
    service.start()
    pids = ready(service)

    def call() -> int:
        return service.echo(5)  # type: ignore[no-any-return]

    with Callers(8, call) as callers:
        until(lambda: len(callers.results) > 100)
        service.close()
        assert all(is_gone(pid) for pid in pids)
        until(lambda: len(callers.errors) >= 8)
    assert set(callers.results) == {5}
    assert {type(error) for error in callers.errors} == {atoll.ServiceClosed}
    assert sorted(gates.notes[2:]) == sorted(("torn down", pid) for pid in pids)


def test_closing_while_workers_start(gates: Gates) -> None:
    service = atoll.Service(gates.file, workers=3, **gates.options)
    call = service.whoami.submit()
    until(lambda: service.status().workers)
    service.close()
    error = call.exception(30)
    assert error is None or isinstance(error, atoll.ServiceClosed)
    until(lambda: not service.status().workers)


def test_with_starts_and_closes(gates: Gates) -> None:
    with atoll.Service(gates.file, workers=2, **gates.options) as service:
        pids = ready(service)
        assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)
    with pytest.raises(atoll.ServiceClosed):
        service.whoami()
    with pytest.raises(atoll.ServiceClosed):
        service.start()


# -- what is not as it should be -----------------------------------------------------------------------------------


def test_start_returns_with_as_many_workers_as_can_be_had(write: Write, tmp_path: Path) -> None:
    """Only one process at a time can import this service."""
    file = write(
        "single.py",
        """\
        import os
        from atoll_worker import Service, expose

        class Single(Service):
            def setup(self):
                os.open(os.environ["LOCK"], os.O_CREAT | os.O_EXCL)

            @expose
            def whoami(self):
                return os.getpid()
        """,
    )
    with atoll.Service(file, workers=2, env_vars={"LOCK": str(tmp_path / "lock")}) as service:
        assert ready(service) == [service.whoami()]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((1.5, 2, None), "option min of scale: found 1.5"),
        ((True, 2, None), "option min of scale: found True"),
        ((0, None, None), "option max of scale: found None"),
        ((0, 10**9, None), "option max of scale: found 1000000000"),
        ((3, 2, None), r"scale\(min=3, max=2\)"),
        ((0, 0, None), r"scale\(min=0, max=0\)"),
        ((0, 1, float("nan")), "option idle of scale: found nan"),
        ((0, 1, -1), "option idle of scale: found -1"),
        ((0, 1, "x"), "option idle of scale: found 'x'"),
    ],
)
def test_wrong_bounds_are_refused_where_they_are_given(gates: Gates, bounds: tuple[Any, ...], message: str) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        with pytest.raises(atoll.ManifestError, match=message):
            service.scale(*bounds)
        assert service.echo(1) == 1


def test_a_name_that_is_no_text_is_refused_and_an_unknown_one_is_no_label(gates: Gates) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        for name in (len, None, []):
            with pytest.raises(TypeError, match="name of a function"):
                service.call(name, 1)  # type: ignore[arg-type]
        with pytest.raises(atoll.FunctionNotFound):
            service.call("no_such_function")
        durations = next(one for one in service.metrics() if one.name == "atoll_call_duration_seconds")
        assert {sample.labels["function"] for sample in durations.samples} == {"(unknown)"}


def test_the_functions_of_a_reloaded_service_are_those_it_has_now(write: Write) -> None:
    text = "from atoll_worker import expose\n\n@expose\ndef {}:\n    return 1\n"
    file = write("changing.py", text.format("first()"))
    with atoll.Service(file) as service:
        assert set(service.functions) == {"first"}
        write("changing.py", text.format("second(x)"))
        service.reload()
        assert {name: info.signature for name, info in service.functions.items()} == {"second": "(x)"}


def test_a_thread_that_gets_no_processor_keeps_its_worker(gates: Gates) -> None:
    """Callers that were given a channel wait for the interpreter, behind threads that never wait for anything."""
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(100))

    wrong: list[object] = []

    def call(number: int, service: atoll.Service) -> None:
        for turn in range(8):
            try:
                answer = service.echo((number, turn))
                if answer != (number, turn):
                    wrong.append(answer)
            except atoll.AtollError as error:
                wrong.append(error)

    with atoll.Service(gates.file, workers=2, **gates.options) as service:
        pids = ready(service)
        burners = [threading.Thread(target=burn) for _ in range(3)]
        callers = [threading.Thread(target=call, args=(number, service)) for number in range(10)]
        for thread in (*burners, *callers):
            thread.start()
        for thread in callers:
            thread.join()
        stop.set()
        for thread in burners:
            thread.join()
        assert not wrong
        assert ready(service) == pids


def test_a_channel_that_was_lost_costs_its_worker(gates: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when an exception of a signal handler's strikes just after it was taken."""
    monkeypatch.setattr(waiting, "LOST_AFTER", 0.3)
    with atoll.Service(gates.file, **gates.options) as service:
        pid = service.whoami()
        service._pool.dispatcher.take()
        assert service.whoami() != pid
