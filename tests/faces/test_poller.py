# SPDX-License-Identifier: Apache-2.0
"""Waiting for many descriptors: the same with epoll and where there is none."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from atoll_worker.faces import poller
from conditions import until
from pyproc_peer import folder_for_sockets, running

PROGRAM = """\
import select
import time
from pathlib import Path

del select.epoll

from atoll_worker import expose, run_worker
from atoll_worker.faces import poller


@expose
def kind(req):
    return type(poller.make_poller()).__name__


@expose
def wait(req):
    Path(req).touch()
    time.sleep(60)


run_worker()
"""


@pytest.fixture(params=[poller.make_poller, poller.Poller], ids=["epoll", "without"])
def waiting(request: pytest.FixtureRequest) -> Iterator[poller.Poller]:
    with closing(request.param()) as one:
        yield one


def test_what_happens_at_a_descriptor(waiting: poller.Poller) -> None:
    read, write = os.pipe()
    waiting.register(read, poller.IN)
    assert waiting.poll(0) == []
    os.write(write, b"x")
    assert waiting.poll(1.0) == [(read, poller.IN)]
    waiting.modify(read, 0)
    assert waiting.poll(0.01) == []
    waiting.modify(read, poller.IN)
    os.close(write)
    [(fd, events)] = waiting.poll()
    assert fd == read
    assert events & select.POLLHUP & poller.BROKEN
    waiting.unregister(read)
    assert waiting.poll(0) == []
    os.close(read)


def test_several_threads_may_wait(waiting: poller.Poller) -> None:
    read, write = os.pipe()
    waiting.register(read, poller.IN)
    found: list[list[tuple[int, int]]] = []
    threads = [threading.Thread(target=lambda: found.append(waiting.poll(20.0))) for _ in range(2)]
    for one in threads:
        one.start()
    os.write(write, b"x")
    for one in threads:
        one.join()
    assert found == [[(read, poller.IN)]] * 2
    os.close(read)
    os.close(write)


def test_a_worker_where_there_is_no_epoll(tmp_path: Path) -> None:
    import sys

    path = tmp_path / "began"
    with folder_for_sockets() as folder, running(sys.executable, PROGRAM, folder) as worker:
        with worker.caller() as caller, worker.caller() as other:
            assert caller.call("kind") == "Poller"
            number = caller.request("wait", str(path))
            until(path.exists)
            assert other.call("health")["pid"] == worker.pid
            caller.cancel(number, "late")
            assert caller.reply()["error"] == "Cancelled: late"
            assert other.call("kind") == "Poller"
        assert worker.stop(signal.SIGINT) == 0
