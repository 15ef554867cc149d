# SPDX-License-Identifier: Apache-2.0
"""Callers who do everything that callers do, and should not, all at once; then the worker is as it was before."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.environments import find_interpreter
from atoll.errors import AtollError
from conditions import until
from pyproc_peer import Caller, Worker, folder_for_sockets, running

pytestmark = pytest.mark.stress

PROGRAM = """\
import asyncio
import time

from atoll_worker import expose, run_worker


@expose
def echo(req):
    return req


@expose
def nap(req):
    time.sleep(req)
    return req


@expose
async def doze(req):
    await asyncio.sleep(req)
    return req


@expose
def spin(req):
    until = time.monotonic() + req
    while time.monotonic() < until:
        pass
    return req


@expose
def fail(req):
    raise ValueError(req)


run_worker()
"""

CALLERS, ACTIONS = 8, 120


@pytest.fixture(params=["3.9", "3.13"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    try:
        python = str(find_interpreter(request.param).path)
    except AtollError as error:
        pytest.skip(f"needs Python {request.param}: {error}")
    with folder_for_sockets() as folder, running(python, PROGRAM, folder) as one:
        yield one


class Storm:
    """One caller's actions, decided by a seed; each leaves the connection usable, or raises ``Away``."""

    class Away(Exception):
        """The connection is of no use any more."""

    def __init__(self, worker: Worker, seed: int) -> None:
        self.worker = worker
        self.random = random.Random(seed)
        self.checked = 0

    def run(self) -> None:
        """All of them."""
        actions: list[Callable[[Caller], None]] = [
            *(self.call, self.call, self.ahead, self.large, self.fails, self.cancels, self.cancels, self.late),
            *(self.malformed, self.health, self.leaves, self.leaves_in_a_frame, self.leaves_unread, self.half_closes),
        ]
        caller = self.worker.caller()
        for _ in range(ACTIONS):
            try:
                self.random.choice(actions)(caller)
            except Storm.Away:
                caller.close()
                caller = self.worker.caller()
        caller.close()

    def call(self, caller: Caller) -> None:
        body = ["x" * self.random.randrange(3_000), self.random.random()]
        assert caller.call("echo", body) == body
        self.checked += 1

    def ahead(self, caller: Caller) -> None:
        numbers = [caller.request("echo", number) for number in range(self.random.randrange(40))]
        assert [caller.reply()["id"] for _ in numbers] == numbers

    def large(self, caller: Caller) -> None:
        body = "y" * self.random.randrange(400_000)
        assert caller.call("echo", body) == body

    def fails(self, caller: Caller) -> None:
        assert caller.error("fail", "so") == "ValueError: so"

    def cancels(self, caller: Caller) -> None:
        method = self.random.choice(["nap", "doze", "spin"])
        number = caller.request(method, self.random.choice([0.0, 0.001, 0.03, 0.1]))
        threading.Event().wait(self.random.choice([0.0, 0.001, 0.05]))
        caller.cancel(number, "storm")
        reply = caller.reply()
        assert reply["id"] == number
        assert reply["ok"] or reply["error"] == "Cancelled: storm"

    def late(self, caller: Caller) -> None:
        number = caller.request("echo", 1)
        assert caller.reply()["ok"]
        caller.cancel(number)

    def malformed(self, caller: Caller) -> None:
        caller.send_raw(self.random.choice([b"", b"{", b"[]", b"\xff", b'{"id":1}', b"[" * 2_000]))
        assert caller.reply()["error"].startswith("Malformed")

    def health(self, caller: Caller) -> None:
        assert caller.call("health")["pid"] == self.worker.pid

    def leaves(self, caller: Caller) -> None:
        caller.request(self.random.choice(["nap", "doze", "spin", "echo"]), 0.05)
        raise Storm.Away

    def leaves_in_a_frame(self, caller: Caller) -> None:
        caller.sock.sendall((5_000_000).to_bytes(4, "big")[: self.random.randrange(1, 5)] + b"{" * 10)
        raise Storm.Away

    def leaves_unread(self, caller: Caller) -> None:
        for _ in range(5):
            caller.request("echo", "z" * 60_000)
        raise Storm.Away

    def half_closes(self, caller: Caller) -> None:
        import socket

        number = caller.request("echo", "half")
        caller.sock.shutdown(socket.SHUT_WR)
        assert caller.reply()["id"] == number
        raise Storm.Away


def descriptors(worker: Worker) -> int:
    return len(os.listdir(f"/proc/{worker.pid}/fd"))


def test_after_a_storm_nothing_is_left_of_it(worker: Worker) -> None:
    with worker.caller() as caller:
        caller.call("doze", 0.0)
        before = descriptors(worker) - 1  # its own
    storms = [Storm(worker, seed) for seed in range(CALLERS)]
    errors: list[BaseException] = []

    def run(storm: Storm) -> None:
        try:
            storm.run()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(storm,)) for storm in storms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(storm.checked for storm in storms) > 0
    until(lambda: descriptors(worker) <= before, what="the connections to be closed")
    with worker.caller() as caller:
        assert caller.call("health") == {"status": "healthy", "pid": worker.pid}
    said = worker.stderr()
    # What `fail` raises is said; nothing of the worker's own is.
    assert "atoll_worker/faces" not in said
    assert said.count("Traceback") == said.count("ValueError: so")
    memory = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert memory < 150_000_000
    assert worker.stop(signal.SIGINT) == 0
