# SPDX-License-Identifier: Apache-2.0
"""A forked child of the host: what belongs to a worker of the parent says so at once, and disturbs nobody."""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import atoll
from conditions import WITHIN

Write = Callable[[str, str], Path]

SERVICE = """\
import os, time
from atoll_worker import expose, ref

class Index:
    def __init__(self):
        self.items = []
    def add(self, item):
        self.items.append(item)
        return len(self.items)
    def __len__(self):
        return len(self.items)

@expose
def index():
    return ref(Index())

@expose
def frames(count):
    yield from range(count)

@expose
def double(number):
    return 2 * number

@expose
def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)
    return path

@expose
def run(function):
    return function(), os.getpid()
"""


@pytest.fixture(params=["1", "0"], ids=["lane", "socket"])
def service(request: pytest.FixtureRequest, write: Write, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("ATOLL_LANE", request.param)
    with atoll.Service(write("forked.py", SERVICE)) as service:
        yield service


def ended_well(pid: int) -> None:
    """Wait for a forked child, which is not to hang; what went wrong there was printed."""
    fd = os.pidfd_open(pid)
    ready, _, _ = select.select([fd], [], [], WITHIN)
    os.close(fd)
    if not ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert ready, "the child hangs"
    assert status == 0, f"the child ended with {status}"


def in_child(check: Callable[[], object]) -> None:
    """Run it in a forked child."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            check()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    ended_well(pid)


def refused(use: Callable[[], object]) -> None:
    with pytest.raises(atoll.AtollError, match=f"belongs to process {os.getppid()}, from which this one was forked"):
        use()


def test_what_the_parent_borrowed_is_refused(service: Any) -> None:
    """Streams and objects of a worker of the parent's; letting go of them is no matter, and reaches nobody."""
    held = {"stream": service.frames(1000), "index": service.index()}
    assert next(held["stream"]) == 0

    def check() -> None:
        stream, index = held.pop("stream"), held.pop("index")
        stream.close()
        stream.close()
        refused(partial(index.add, 1))
        refused(partial(len, index))
        del stream, index
        gc.collect()
        assert service.double(4) == 8  # by a worker of its own
        service.close()

    in_child(check)
    in_child(lambda: refused(lambda: list(held["stream"])))
    assert list(held["stream"]) == list(range(1, 1000))
    assert held["index"].add(1) == 1
    assert service.status().restarts == 0


def test_submitted_calls_and_maps_of_the_parent_are_refused(service: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    done = service.double.submit(4)
    assert done.result(WITHIN) == 8
    in_order, as_ready = (service.double.map(iter(range(10**4)), ordered=ordered) for ordered in (True, False))
    assert next(in_order) == 0
    next(as_ready)
    running, waiting = (service.wait_for.submit(str(go)) for _ in range(2))

    def check() -> None:
        assert done.result() == 8
        for call in (running, waiting):
            assert not call.cancel()
            refused(call.result)
            refused(call.exception)
        for mapped in (in_order, as_ready):
            refused(partial(list, mapped))
        assert service.double.submit(5).result(WITHIN) == 10
        assert list(service.double.map(range(3))) == [0, 2, 4]
        service.close()

    in_child(check)
    go.touch()
    assert [running.result(WITHIN), waiting.result(WITHIN)] == [str(go)] * 2
    assert list(in_order)[-1] == 2 * 10**4 - 2
    assert len(list(as_ready)) == 10**4 - 1
    assert service.status().restarts == 0


@pytest.mark.parametrize("again", [False, True], ids=["once", "nested"])
def test_a_fork_in_a_callback(service: Any, again: bool) -> None:
    """Both sides return from it: the parent's call goes on, the child's raises at once."""
    parent = os.getpid()
    children: list[int] = []

    def fork() -> int:
        children.append(os.fork())
        return children[-1]

    code = 1
    try:
        pid, worker = service.run((lambda: service.run(fork)[0]) if again else fork)
        assert (pid, worker) == (children[0], service.pid)
        assert os.getpid() == parent
    except atoll.AtollError as error:
        if os.getpid() == parent:
            raise
        code = 0 if f"belongs to process {parent}" in str(error) and service.double(3) == 6 else 2
        service.close()
    finally:
        if os.getpid() != parent:
            if code:
                traceback.print_exc()
            os._exit(code)
    ended_well(children[0])
    assert service.double(4) == 8
    assert (service.pid, service.status().restarts) == (worker, 0)


def test_a_child_that_exits_within_a_callback(service: Any) -> None:
    """As many programs do: what ends the child is not taken for the call's failure."""
    parent = os.getpid()

    def fork() -> int:
        pid = os.fork()
        if not pid:
            sys.exit(7)
        return pid

    code = 1
    try:
        pid, worker = service.run(fork)
    except SystemExit as error:
        if os.getpid() == parent:
            raise
        code = int(error.code or 0)
    finally:
        if os.getpid() != parent:
            os._exit(0 if code == 7 else 1)
    ended_well(pid)
    assert service.double(4) == 8
    assert (service.pid, service.status().restarts) == (worker, 0)
