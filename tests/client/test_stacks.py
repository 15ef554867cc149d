# SPDX-License-Identifier: Apache-2.0
"""Stacks of a service's workers: from outside at any time, in what a timeout says, and after a crash."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import atoll
from atoll.processes import usage, warden
from atoll.processes.stacks import python_stacks, short_stacks, stacks
from client.rungs import ends_at, not_before
from conditions import WITHIN, until

SERVICE = """\
    import collections, ctypes, itertools, os, time
    from atoll_worker import expose

    @expose
    def nothing():
        return None

    @expose
    def sleep():
        time.sleep(600)

    @expose
    def hold():
        collections.deque(itertools.repeat(None), maxlen=0)

    @expose
    def crash():
        ctypes.string_at(0)
"""


@pytest.fixture
def service(write: Callable[[str, str], Path]) -> Iterator[atoll.Service]:
    with atoll.Service(write("standing.py", SERVICE)) as service:
        yield service


def test_a_worker_that_waits_for_calls(service: atoll.Service) -> None:
    assert service.pid is not None
    for _ in range(3):
        service.nothing()
        assert "in serve" in until(lambda: python_stacks(service.pid or 0, WITHIN))
    service.nothing()


@pytest.mark.parametrize("function", ["sleep", "hold"])
def test_a_worker_in_the_middle_of_a_call(service: atoll.Service, function: str) -> None:
    pid = service.pid
    assert pid is not None
    ends: list[BaseException] = []

    def call() -> None:
        try:
            service.call(function)
        except atoll.WorkerDied as error:
            ends.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: f"in {function}\n" in python_stacks(pid, WITHIN))
    python, native = stacks(pid, timeout=WITHIN)
    assert "standing.py" in python
    assert "in _serve" in python
    assert str(pid) in native
    short = short_stacks(pid, timeout=WITHIN)
    first, second, third, *_ = short.python.splitlines()
    assert "most recent call first" in first
    assert second.endswith(f"in {function}")
    assert third in ("    time.sleep(600)", "    collections.deque(itertools.repeat(None), maxlen=0)")
    assert "atoll_worker" not in short.python  # its own thread, and the frames that called the function
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert len(ends) == 1


def test_a_timeout_says_where_it_was_also_in_code_that_holds_the_interpreter_lock(
    service: atoll.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_at(monkeypatch, "SIGTERM")
    pid = service.pid or 0
    not_before(monkeypatch, lambda: "in hold\n" in python_stacks(pid, WITHIN))
    with pytest.raises(atoll.CallTimeout, match=r'It was here:[^`]*standing\.py", line \d+ in hold'):
        service.hold.options(timeout=1)()


@pytest.mark.usefixtures("known")
def test_a_crash_says_where_it_was(service: atoll.Service) -> None:
    with pytest.raises(atoll.WorkerDied) as caught:
        service.crash()
    assert caught.value.signal == 11
    assert any("Segmentation fault" in line for line in caught.value.stderr)
    assert any(line.endswith(" in crash") and "standing.py" in line for line in caught.value.stderr)


@pytest.mark.usefixtures("known")
def test_a_crash_in_the_depth_says_where_it_was(write: Callable[[str, str], Path]) -> None:
    text = """\
        import ctypes, sys
        from atoll_worker import expose

        def innermost():
            ctypes.string_at(0)

        def inner(depth):
            return inner(depth - 1) if depth else innermost()

        @expose
        def crash(depth):
            print("printed before", file=sys.stderr)
            inner(depth)
    """
    with atoll.Service(write("depth.py", text)) as service:
        with pytest.raises(atoll.WorkerDied) as caught:
            service.crash(90)
        lines = caught.value.stderr
        assert "printed before" in lines
        assert any(line.endswith(" in innermost") for line in lines)
        assert sum(line.endswith(" in inner") for line in lines) > 10
        with pytest.raises(atoll.WorkerDied) as caught:
            service.crash(1)
        assert any(line.endswith(" in crash") for line in caught.value.stderr)


def test_children_of_a_worker_hold_nothing_of_it(write: Callable[[str, str], Path]) -> None:
    text = """\
        import os, subprocess
        from atoll_worker import expose

        @expose
        def descriptors():
            done = subprocess.run("ls -l /proc/self/fd", shell=True, capture_output=True, text=True, close_fds=False)
            return done.stdout

        @expose
        def own():
            return [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) >= 200]
    """
    with atoll.Service(write("family.py", text)) as service:
        assert "atoll-stacks" not in service.descriptors()
        assert any("atoll-stacks" in name for name in service.own())


def test_a_worker_that_gets_no_processor_is_waited_for_and_not_looked_into(
    service: atoll.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by signal, a process of which threads run Python may crash; one that cannot run may be such a one."""
    service.nothing()
    (worker,) = service._pool.workers
    monkeypatch.setattr("atoll.pool.worker._ANSWER_GRACE", 0.01)
    monkeypatch.setattr("atoll.pool.worker._ANSWER_LATEST", WITHIN)
    monkeypatch.setattr("atoll.pool.worker.wants_processor", lambda _: True)
    had = usage(worker.process.python_pid)
    monkeypatch.setattr("atoll.pool.worker.usage", lambda _: had)
    monkeypatch.setattr("atoll.processes.stacks.python_stacks", lambda *_: pytest.fail("it was looked into"))
    send = worker._send
    monkeypatch.setattr(worker, "_send", lambda *what: threading.Timer(0.5, send, what).start())
    assert "in _serve" in worker.stacks()
    # Nor is it, where this process is too busy to hear it.
    monkeypatch.setattr(worker, "_send", send)
    monkeypatch.setattr("atoll.pool.worker.wants_processor", lambda _: False)
    go = threading.Event()

    def hang() -> None:
        go.wait(WITHIN)

    warden().post(hang)
    threading.Timer(0.5, go.set).start()
    assert "in _serve" in worker.stacks()


def test_a_worker_that_answers_is_asked_by_several_and_never_looked_into(
    service: atoll.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by signal, a process of which threads run Python may crash."""
    service.nothing()
    (worker,) = service._pool.workers
    monkeypatch.setattr("atoll.pool.worker._ANSWER_GRACE", WITHIN)
    monkeypatch.setattr("atoll.processes.stacks.python_stacks", lambda *_: pytest.fail("it was looked into"))
    begin = threading.Barrier(8)

    def ask(_: int) -> list[str]:
        begin.wait(WITHIN)
        return [worker.stacks() for _ in range(50)]

    begun = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        answers = [one for answers in threads.map(ask, range(8)) for one in answers]
    assert len(answers) == 400
    assert time.monotonic() - begun < WITHIN  # nobody's answer was taken by another
    service.nothing()
