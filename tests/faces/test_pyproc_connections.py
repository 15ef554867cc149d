# SPDX-License-Identifier: Apache-2.0
"""Those who are connected, without a worker: who serves here is the test, one step at a time."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll_worker.faces import pyproc_connections
from atoll_worker.faces.pyproc_connections import Connection, Connections
from atoll_worker.faces.pyproc_wire import Request, write_result
from atoll_worker.json_codec import Codec
from pyproc_peer import Caller, folder_for_sockets

CODEC = Codec("json")


class CallOfNobody:
    """Stands for the call in progress; says what it is told."""

    def __init__(self) -> None:
        self.call_number = 0
        self.connection: Any = None
        self.request_id: Any = None
        self.cancelled: list[str] = []

    def cancel(self, reason: str) -> bool:
        self.cancelled.append(reason)
        return len(self.cancelled) == 1


class Worker:
    """Connections that listen, and what a worker does with them, step by step."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.call = CallOfNobody()
        self.connections = Connections(self.call, CODEC, self.at_once)  # type: ignore[arg-type]
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen()
        self.listener.setblocking(False)
        self.connections.listen(self.listener)

    def at_once(self, request: Request) -> list[bytes] | None:
        return write_result(request.id, b'"at once"', CODEC) if request.method == "quick" else None

    def look(self, is_during_call: bool = False) -> None:
        """Take all that has come until now."""
        while events := [one for one in self.connections.poll(0) if one[1]]:
            for fd, event in events:
                self.connections.handle(fd, event, is_during_call)

    def begin(self) -> tuple[Connection, Any]:
        """What is to be answered next, and whose it is."""
        connection = self.connections.ready.popleft()
        one = connection.take_next()
        if type(one) is Request:
            self.call.call_number += 1
            self.call.connection, self.call.request_id = connection, one.id
        return connection, one

    def end(self, connection: Connection, result: Any) -> None:
        """Answer the call in progress."""
        reply = write_result(self.call.request_id, json.dumps(result).encode(), CODEC)
        self.call.call_number = 0
        if not connection.is_gone:
            self.connections.send(connection, reply)
            self.connections.settle(connection)


@pytest.fixture
def worker() -> Iterator[Worker]:
    with folder_for_sockets() as folder:
        one = Worker(folder / "s")
        yield one
        one.connections.close()
        one.connections._poller.close()
        one.listener.close()


@pytest.fixture
def caller(worker: Worker) -> Iterator[Caller]:
    with Caller(worker.path) as one:
        worker.look()
        yield one


def test_requests_wait_in_their_order_and_connections_in_turn(worker: Worker, caller: Caller) -> None:
    with Caller(worker.path) as other:
        worker.look()
        caller.request("first")
        caller.request("second")
        worker.look()
        other.request("third")
        worker.look()
        order = []
        for _ in range(3):
            connection, request = worker.begin()
            order.append(request.method)
            worker.end(connection, request.method)
        assert order == ["first", "third", "second"]
        assert [caller.reply()["body"] for _ in range(2)] == ["first", "second"]
        assert other.reply()["body"] == "third"


def test_what_need_not_wait_is_answered_during_a_call_unless_something_waits_before_it(
    worker: Worker, caller: Caller
) -> None:
    with Caller(worker.path) as other:
        worker.look()
        caller.request("long")
        worker.look()
        connection, _ = worker.begin()
        other.request("quick")
        caller.request("quick")  # behind the call of its own connection
        other.send_raw(b"{")
        worker.look(is_during_call=True)
        assert other.reply()["body"] == "at once"
        assert other.reply()["error"].startswith("Malformed")
        other.request("slow")
        other.request("quick")
        worker.look(is_during_call=True)
        assert [one.method for one in connection.waiting] == ["quick"]  # type: ignore[union-attr]
        worker.end(connection, "over")
        assert caller.reply()["body"] == "over"
        assert {worker.begin()[1].method for _ in range(2)} == {"quick", "slow"}


def test_a_cancellation_reaches_the_call_or_what_waits_and_nothing_else(worker: Worker, caller: Caller) -> None:
    with Caller(worker.path) as other:
        worker.look()
        running, waiting = caller.request("long"), caller.request("waiting")
        worker.look()
        connection, _ = worker.begin()
        caller.cancel(99, "nobody's")
        other.cancel(running, "of another")
        worker.look(is_during_call=True)
        assert (worker.call.cancelled, connection.cancelled) == ([], {})
        caller.cancel(waiting, "early")
        caller.cancel(running, "late")
        caller.cancel(running, "later")
        worker.look(is_during_call=True)
        assert worker.call.cancelled == ["late", "later"]
        assert connection.take_cancellation(waiting) == "early"
        assert connection.take_cancellation(waiting) is None
        worker.end(connection, "all the same")
        caller.cancel(running, "after its reply")
        worker.look()
        assert worker.call.cancelled == ["late", "later"]
        assert connection.cancelled == {}


def test_hanging_up_cancels_the_call_and_forgets_what_waits(worker: Worker, caller: Caller) -> None:
    caller.request("long")
    caller.request("waiting")
    worker.look()
    connection, _ = worker.begin()
    worker.connections.settle(connection)
    assert list(worker.connections.ready) == [connection]
    caller.close()
    worker.look(is_during_call=True)
    assert worker.call.cancelled == ["the caller is gone"]
    assert connection.is_gone
    assert not worker.connections
    assert not worker.connections.ready
    worker.end(connection, "to nobody")


def test_who_sends_much_ahead_is_read_no_further(
    worker: Worker, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyproc_connections, "_CHUNK", 100)
    frames = [json.dumps({"id": number, "method": "one"}).encode() for number in range(1, 301)]
    caller.sock.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))
    worker.look()
    [connection] = worker.connections.ready
    most = pyproc_connections._MOST_WAITING
    assert most <= len(connection.waiting) < most + 10
    for number in range(300):
        one, request = worker.begin()
        assert request.id == number + 1
        worker.end(one, None)
        worker.look()
    assert [caller.reply()["id"] for _ in range(300)] == list(range(1, 301))


def test_who_does_not_read_gets_the_rest_when_he_does(worker: Worker, caller: Caller) -> None:
    caller.request("large")
    caller.request("small")
    worker.look()
    connection, _ = worker.begin()
    worker.end(connection, "x" * 5_000_000)
    assert connection.unsent
    assert not worker.connections.ready, "the next waits for him too"
    caller.request("another")
    worker.look()
    assert len(connection.waiting) == 1, "and nothing more is read"
    expected = b'{"id":1,"ok":true,"body":"' + b"x" * 5_000_000 + b'"}'
    data = b""
    while connection.unsent:
        data += caller.sock.recv(1 << 16)
        worker.look()
    assert list(worker.connections.ready) == [connection]
    assert data + caller.read_exactly(4 + len(expected) - len(data)) == len(expected).to_bytes(4, "big") + expected
    worker.look()
    assert len(connection.waiting) == 2
