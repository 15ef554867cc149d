# SPDX-License-Identifier: Apache-2.0
"""Ending a call, step by step: its code is told, then interrupted, at last its worker is killed with all it started."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import textwrap
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool.channel import Channel
from atoll.pool.escalation import Escalation
from atoll.pool.worker import Worker
from client.rungs import UNHURRIED, ends_at, not_before
from conditions import WITHIN, end, start_python, until, until_gone

Write = Callable[[str, str], Path]
Run = Callable[[Coroutine[Any, Any, Any]], Any]

SERVICE = """\
import itertools
import os
import signal
import subprocess
import time

from atoll_worker import Cancelled, expose

@expose
def sleep(begun):
    try:
        open(begun, "w").close()
        time.sleep(60)
    finally:
        open(begun + ".finally", "w").close()

@expose
def swallow(begun):
    "Does not want to end. Interrupted twice, it may be so on its way from the inner loop's end to its beginning."
    while True:
        try:
            while True:
                try:
                    open(begun, "w").close()
                    time.sleep(60)
                except BaseException:
                    pass
        except BaseException:
            pass

@expose
def swallow_once(begun):
    try:
        open(begun, "w").close()
        time.sleep(60)
    except Cancelled:
        return "an answer after all"

@expose
def native(begun):
    "Holds the interpreter's lock, in C, from before the file is there."
    sum(itertools.chain(filter(None, map(os.mknod, [begun])), itertools.repeat(1)))

@expose
def native_deaf(begun):
    "And ignores SIGTERM."
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    native(begun)

@expose
def with_children(begun):
    child = subprocess.Popen(["sh", "-c", "sleep 1000 >/dev/null & echo $! $$; wait"], stdout=subprocess.PIPE)
    with open(begun + ".pids", "wb") as file:
        file.write(child.stdout.readline())
    native(begun)

@expose
def many(begun):
    open(begun, "w").close()
    time.sleep(60)

@expose
def echo(x):
    return x

@expose
def pid():
    return os.getpid()

@expose
def call_back_in_finally(begun, f):
    try:
        open(begun, "w").close()
        time.sleep(60)
    finally:
        try:
            f()
        except Exception as error:
            open(begun + ".error", "w").write(type(error).__name__)
"""

COOPERATIVE = """\
import os
import time

from atoll_worker import cancelled, expose

seen = []

@expose
def polite(begun):
    open(begun, "w").close()
    while not cancelled():
        time.sleep(0.002)
    seen.append("told")
    return "partly done"

@expose
def impolite(begun):
    open(begun, "w").close()
    time.sleep(60)

@expose
def lasts(until):
    while not os.path.exists(until):
        time.sleep(0.002)

@expose
def taken():
    return list(seen)

@expose
def now():
    return cancelled()

@expose
def apply(f):
    before = cancelled()
    f()
    return before, cancelled()

@expose
def pid():
    return os.getpid()
"""


@pytest.fixture
def service(write: Write) -> Iterator[atoll.Service]:
    with atoll.Service(write("ending.py", SERVICE)) as service:
        yield service


@pytest.fixture
def polite(write: Write) -> Iterator[atoll.Service]:
    with atoll.Service(write("polite.py", COOPERATIVE)) as service:
        yield service


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    return tmp_path / "begun"


@pytest.fixture
def once_begun(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is interrupted before its function has made the file."""
    not_before(monkeypatch, begun.exists)


def cancelled_by(how: str, function: Any, begun: Path) -> BaseException:
    """Call a function that never ends, give the call up once it has begun, and return what is raised."""
    if how == "timeout":
        with pytest.raises(atoll.CallTimeout) as late:
            function.options(timeout=0.3)(str(begun))
        return late.value
    call = function.submit(str(begun))
    until(begun.exists)
    assert call.cancel()
    assert call.cancel() or call.done()
    with pytest.raises(atoll.CallCancelled) as given_up:
        call.result(WITHIN)
    assert call.cancelled()
    assert not call.cancel()
    return given_up.value


@pytest.mark.usefixtures("unhurried", "once_begun")
@pytest.mark.parametrize("how", ["timeout", "submit"])
def test_by_an_exception(service: atoll.Service, begun: Path, how: str) -> None:
    pid = service.call("pid")
    error = cancelled_by(how, service.sleep, begun)
    assert error.rung == "exception"  # type: ignore[attr-defined]
    assert Path(f"{begun}.finally").exists()
    assert service.call("pid") == pid
    if how == "timeout":
        assert "in sleep" in str(error)
        assert "goes on" in str(error)


@pytest.mark.usefixtures("once_begun")
def test_code_that_looks_is_told(polite: atoll.Service, begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = polite.call("pid")
    ends_at(monkeypatch, "cooperative")
    with pytest.raises(atoll.CallTimeout) as late:
        polite.polite.options(timeout=0.5)(str(begun))
    assert late.value.rung == "cooperative"
    assert polite.taken() == ["told"]
    assert polite.now() is False  # it was that call, not this one
    begun.unlink()
    call = polite.polite.submit(str(begun))
    until(begun.exists)
    call.cancel()
    with pytest.raises(atoll.CallCancelled) as cancelled:
        call.result(WITHIN)
    assert (cancelled.value.rung, cancelled.value.result) == ("cooperative", "partly done")
    assert call.cancelled()
    assert polite.call("pid") == pid
    begun.unlink()
    ends_at(monkeypatch, "exception")
    with pytest.raises(atoll.CallTimeout) as late:
        polite.impolite.options(timeout=0.5)(str(begun))
    assert late.value.rung == "exception"
    assert polite.call("pid") == pid


@pytest.mark.usefixtures("once_begun")
def test_only_the_call_within_is_told(polite: atoll.Service, begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that a callback made is late; the one around it goes on, and so does the next one within."""
    rungs = []

    def callback() -> None:
        ends_at(monkeypatch, "cooperative")
        for _ in range(2):
            begun.unlink(missing_ok=True)
            with pytest.raises(atoll.CallTimeout) as late:
                polite.polite.options(timeout=0.5)(str(begun))
            rungs.append(late.value.rung)
            assert polite.now() is False
        ends_at(monkeypatch, "exception")
        begun.unlink()
        with pytest.raises(atoll.CallTimeout) as late:
            polite.impolite.options(timeout=0.5)(str(begun))
        rungs.append(late.value.rung)
        assert polite.now() is False

    assert polite.apply(callback) == (False, False)
    assert rungs == ["cooperative", "cooperative", "exception"]
    assert polite.taken() == ["told", "told"]


@pytest.mark.parametrize("late", [False, True], ids=["told", "interrupted"])
def test_what_is_said_too_late_is_not_for_the_next_call_within(
    polite: atoll.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """That a call is to end goes another way than calls do, and those of the same depth have the same id."""
    cancel, wanted = Worker.cancel, []

    def late_cancel(worker: Worker, channel: Channel, call_id: int, force: bool) -> None:
        if force is late:
            until_it.touch()
            until(lambda: channel.connection.conversation.call_id < call_id)
            wanted.append(call_id)
        cancel(worker, channel, call_id, force)

    monkeypatch.setattr(Worker, "cancel", late_cancel)
    found = []

    def callback() -> None:
        with pytest.raises(atoll.CallTimeout):
            polite.lasts.options(timeout=0.05)(str(until_it))
        found.append(polite.now())
        until_it.unlink()
        with pytest.raises(atoll.CallTimeout):
            polite.lasts.options(timeout=0.05)(str(until_it))
        found.append(polite.now())

    until_it = tmp_path / "until"
    assert polite.apply(callback) == (False, False)
    assert found == [False, False]
    assert len(wanted) == 2
    assert len(set(wanted)) == 1


@pytest.mark.usefixtures("unhurried")
def test_an_answer_after_all(service: atoll.Service, begun: Path) -> None:
    call = service.swallow_once.submit(str(begun))
    until(begun.exists)
    call.cancel()
    with pytest.raises(atoll.CallCancelled) as cancelled:
        call.result(WITHIN)
    assert (cancelled.value.rung, cancelled.value.result) == ("exception", "an answer after all")


@pytest.mark.usefixtures("once_begun")
@pytest.mark.parametrize("how", ["timeout", "submit"])
@pytest.mark.parametrize(("name", "rung"), [("swallow", "SIGTERM"), ("native", "SIGTERM"), ("native_deaf", "SIGKILL")])
def test_by_a_signal(
    service: atoll.Service,
    begun: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    name: str,
    rung: str,
) -> None:
    ends_at(monkeypatch, rung)
    pid = service.call("pid")
    with caplog.at_level(logging.WARNING, "atoll"):
        error = cancelled_by(how, service.function(name), begun)
    assert error.rung == rung  # type: ignore[attr-defined]
    until_gone(pid)
    assert service.call("pid") != pid
    # It is logged by another thread.
    (warning,) = until(lambda: [text for text in caplog.messages if "is stopped" in text])
    assert f"ending.{name}" in warning
    assert str(pid) in warning
    if name != "swallow":
        assert "sum" in warning  # the native stack
    if how == "timeout":
        assert "was stopped" in str(error)
    assert not [record for record in caplog.records if "killed by signal" in record.getMessage()]  # it was meant to


def test_an_interruption_that_strikes_on_the_way_back_does_not_end_the_worker(write: Write) -> None:
    text = """\
    import os, sys
    from atoll_worker import Cancelled, expose

    def strike(frame, event, argument):
        "Where the handler of a signal may run, too: at the entry of a function."
        if event == "call" and frame.f_code.co_name == "_come_back":
            sys.setprofile(None)
            raise Cancelled("late")

    @expose
    def fail():
        sys.setprofile(strike)
        raise ValueError

    @expose
    def whoami():
        return os.getpid()
    """
    with atoll.Service(write("late.py", text)) as service:
        pid = service.whoami()
        with pytest.raises(Exception, match="late"):
            service.fail()
        assert service.whoami() == pid


def test_all_that_it_started_ends_too(service: atoll.Service, begun: Path) -> None:
    call = service.with_children.submit(str(begun))
    until(begun.exists)
    pids = [int(word) for word in Path(f"{begun}.pids").read_text().split()]
    assert len(pids) == 2
    call.cancel()
    with pytest.raises(atoll.CallCancelled):
        call.result(WITHIN)
    until_gone(*pids)
    assert service.echo(1) == 1


@pytest.mark.usefixtures("unhurried", "once_begun")
def test_calling_back_while_being_ended(service: atoll.Service, begun: Path) -> None:
    called: list[int] = []
    call = service.call_back_in_finally.submit(str(begun), lambda: called.append(1))
    until(begun.exists)
    call.cancel()
    with pytest.raises(atoll.CallCancelled):
        call.result(WITHIN)
    assert called == [1]  # who waits for it still serves it
    begun.unlink()
    with pytest.raises(atoll.CallTimeout):
        service.call_back_in_finally.options(timeout=0.5)(str(begun), lambda: called.append(2))
    assert Path(f"{begun}.error").read_text() == "AtollError"
    assert called == [1]
    assert service.echo(1) == 1


@pytest.mark.usefixtures("unhurried")
def test_before_it_began(service: atoll.Service, begun: Path) -> None:
    first = service.sleep.submit(str(begun))
    until(begun.exists)
    second = service.echo.submit(2)
    assert second.cancel()
    assert second.cancelled()
    first.cancel()
    with pytest.raises(atoll.CallCancelled):
        first.result(WITHIN)
    assert service.echo(3) == 3


def test_after_it_ended(service: atoll.Service) -> None:
    call = service.echo.submit(2)
    assert call.result(WITHIN) == 2
    assert not call.cancel()
    assert not call.cancelled()


@pytest.mark.usefixtures("unhurried", "once_begun")
def test_the_task_of_a_call(service: atoll.Service, begun: Path, run: Run) -> None:
    async def main() -> None:
        task = asyncio.create_task(service.sleep.aio(str(begun)))
        await asyncio.to_thread(until, begun.exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await service.echo.aio(1) == 1
        assert Path(f"{begun}.finally").exists()
        assert await service.function("pid").aio() == pid
        begun.unlink()
        with pytest.raises(atoll.CallTimeout):
            await service.sleep.options(timeout=0.1).aio(str(begun))
        begun.unlink(missing_ok=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await service.sleep.aio(str(begun))
        assert await service.echo.aio(1) == 1
        assert await service.function("pid").aio() == pid

    pid = service.call("pid")
    run(main())


def test_a_loop_that_is_closed_under_its_call(service: atoll.Service, begun: Path) -> None:
    """The channel is given back exactly once, whoever is there to do it."""
    for _ in range(3):
        begun.unlink(missing_ok=True)
        loop = asyncio.new_event_loop()
        task = loop.create_task(service.sleep.aio(str(begun)))
        while not begun.exists():
            loop.run_until_complete(asyncio.sleep(0.001))
        task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        del task, loop
    assert service.echo(1) == 1
    dispatcher = service._pool.dispatcher
    assert len(dispatcher.idle) == len(set(map(id, dispatcher.idle))) == 1


def test_cancelled_again_while_it_ends(
    service: atoll.Service, begun: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a late call is being ended, its task is cancelled."""
    given_up = threading.Event()
    climb = Escalation._climb

    def climb_then(self: Escalation) -> None:
        given_up.wait(WITHIN)  # or it might have ended before
        climb(self)

    monkeypatch.setattr(Escalation, "_climb", climb_then)

    async def main() -> None:
        task = asyncio.create_task(service.swallow.options(timeout=0.1).aio(str(begun)))
        await asyncio.to_thread(until, lambda: any("atoll-end" in thread.name for thread in threading.enumerate()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        given_up.set()
        assert await service.echo.aio(1) == 1

    run(main())
    dispatcher = service._pool.dispatcher
    assert len(dispatcher.idle) == len(set(map(id, dispatcher.idle))) == 1


HOST = f"""\
    import os, signal, sys, threading
    import atoll
    {UNHURRIED}

    class Told(ladder.Escalation):
        def _run(self):
            print("being ended", flush=True)
            super()._run()

    ladder.Escalation = Told

    begun = sys.argv[2]
    with atoll.Service(sys.argv[1]) as service:
        pid = service.call("pid")
        print("pid", pid, flush=True)
        try:
            service.call(sys.argv[3], begun)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print("same" if service.call("pid") == pid else "another", flush=True)
"""


def test_ctrl_c(write: Write, begun: Path) -> None:
    host = start_python(write("host.py", textwrap.dedent(HOST)), str(write("ending.py", SERVICE)), str(begun), "sleep")
    try:
        assert host.stdout is not None
        assert host.stdout.readline().startswith("pid")
        until(begun.exists)
        os.kill(host.pid, signal.SIGINT)
        assert host.stdout.readline() == "being ended\n"
        assert host.stdout.readline() == "interrupted\n"
        assert host.stdout.readline() == "same\n"
        assert host.wait(WITHIN) == 0
        assert Path(f"{begun}.finally").exists()
    finally:
        end(host)


def test_ctrl_c_twice(write: Write, begun: Path) -> None:
    """The second one does not wait for code that does not want to end."""
    service = write("ending.py", SERVICE)
    host = start_python(write("host.py", textwrap.dedent(HOST)), str(service), str(begun), "native_deaf")
    try:
        assert host.stdout is not None
        pid = int(host.stdout.readline().split()[1])
        until(begun.exists)
        os.kill(host.pid, signal.SIGINT)
        assert host.stdout.readline() == "being ended\n"
        os.kill(host.pid, signal.SIGINT)
        assert host.stdout.readline() == "interrupted\n"
        until_gone(pid)
        assert host.stdout.readline() == "another\n"
        assert host.wait(WITHIN) == 0
    finally:
        end(host)
