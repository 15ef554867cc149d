# SPDX-License-Identifier: Apache-2.0
"""``atoll serve --socket``: a real process, spoken to in bytes as docs/wire.md has them."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import atoll
from conditions import WITHIN, children_of, until, until_gone

pytest.importorskip("typer")

SERVICE = Path(__file__).parents[1] / "go" / "services" / "calls.py"
HELLO, LOAD, READY, CALL, RESULT, ERROR, PING, PONG, CANCEL = 1, 2, 3, 4, 5, 6, 32, 33, 37
RAW, JSON = 0, 2
GREETING = struct.pack("<4sHH", b"atol", 1, 1 << JSON)


def frame(kind: int, codec: int, call_id: int, payload: bytes = b"") -> bytes:
    return struct.pack("<BBHIQ", kind, codec, 0, len(payload), call_id) + payload


class Ended(Exception):
    """The server has closed the connection."""


class Peer:
    """A client, as small as the page allows."""

    def __init__(self, path: Path, *, load: Any = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WITHIN)
        self.sock.connect(str(path))
        self.number = 0
        if load is not ...:
            self.load(load)

    def load(self, load: Any = None) -> None:
        self.sock.sendall(frame(HELLO, RAW, 0, GREETING) + frame(LOAD, JSON, 0, json.dumps(load).encode()))
        kind, codec, number, payload = self.receive()
        assert (kind, codec, number) == (HELLO, RAW, 0)
        assert struct.unpack("<4sHH", payload) == (b"atol", 1, 1 << JSON)
        self.ready_kind, codec, number, payload = self.receive()
        assert (codec, number) == (JSON, 0)
        self.about = json.loads(payload)

    def receive(self) -> tuple[int, int, int, bytes]:
        kind, codec, buffers, length, number = struct.unpack("<BBHIQ", self._exactly(16))
        assert buffers == 0
        return kind, codec, number, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self.sock.recv(size - len(data))
            except ConnectionError:
                piece = b""
            if not piece:
                raise Ended
            data += piece
        return data

    def send(self, request: Any) -> int:
        """Send a call; its id."""
        self.number += 1
        self.sock.sendall(frame(CALL, JSON, self.number, json.dumps(request).encode()))
        return self.number

    def answer(self) -> tuple[int, Any]:
        kind, codec, number, payload = self.receive()
        assert (codec, number) == (JSON, self.number)
        return kind, json.loads(payload)

    def call(self, name: str, *args: Any, **more: Any) -> Any:
        self.send({"function": name, "args": args, **more})
        kind, answer = self.answer()
        assert kind == RESULT, answer
        return answer

    def error(self, request: Any) -> Any:
        self.send(request)
        kind, answer = self.answer()
        assert kind == ERROR, answer
        return answer

    def cancel(self, number: int = 0) -> None:
        self.sock.sendall(frame(CANCEL, RAW, number or self.number, struct.pack("<IB", 0, 1)))

    def ping(self, number: int = 7) -> str:
        self.sock.sendall(frame(PING, RAW, number))
        kind, codec, answered, payload = self.receive()
        assert (kind, codec, answered) == (PONG, RAW, number)
        return payload.decode()

    def is_ended(self) -> bool:
        """Whether the server closes the connection; whatever it says before is passed over."""
        try:
            while True:
                self.receive()
        except Ended:
            return True

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(path: Path, *options: str, service: Path = SERVICE) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "atoll.cli", "serve", "--socket", str(path), str(service), *options]
    environ = {**os.environ, "PYTHONPATH": str(Path(atoll.__file__).parents[1]), "COLUMNS": "200"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environ, text=True)


def is_listened_at(path: Path) -> bool:
    try:
        Peer(path, load=...).close()
    except OSError:
        return False
    return True


@contextmanager
def serving(path: Path, *options: str, status: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A service at a socket; it ends with this status."""
    with start(path, *options) as process:
        try:
            until(lambda: is_listened_at(path) or process.poll() is not None, what="the socket")
            assert process.poll() is None, process.communicate()[1]
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=WITHIN)
            assert process.returncode == status, log
            assert "Traceback" not in log, log
            assert not path.exists()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where one service for many tests is."""
    path = tmp_path_factory.mktemp("place") / "calls.sock"
    with serving(path, "--workers", "2", "--max-size", "1MB"):
        yield path


def test_what_there_is_is_said(place: Path) -> None:
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    with Peer(place) as one:
        assert one.ready_kind == READY
        assert {"add", "count", "sleep"} <= set(one.about["functions"])
        assert (one.about["service"], one.about["max_size"], one.about["in_flight"]) == ("calls", 1_000_000, 2)
        assert one.about["pid"] != one.call("pid"), "the service runs in processes of its own"
        assert one.ping() == "running"


def test_vectors(place: Path) -> None:
    """Frames as the Go client's tests have them, too."""
    vectors = json.loads((SERVICE.parents[1] / "vectors.json").read_text())["frames"]
    data = {one["name"]: bytes.fromhex(one["bytes"]) for one in vectors}
    with Peer(place, load=...) as one:
        one.sock.sendall(data["hello of a service at a socket"])
        assert one._exactly(24) == data["hello of a service at a socket"]
        one.sock.sendall(data["load of a service at a socket"])
        kind, _, _, ready = one.receive()
        assert kind == READY
        assert json.loads(ready).keys() == json.loads(data["ready of a service at a socket"][16:]).keys()
        one.sock.sendall(data["call"])
        assert one._exactly(17) == data["result"]
        # At once: the answer to the one comes when its time is over.
        one.sock.sendall(data["call with a timeout"] + data["ping of a service at a socket"])
        kind, codec, number, _ = one.receive()
        assert (kind, codec, number) == (PONG, RAW, 5)
        one.sock.sendall(data["cancel of a service at a socket"])
        kind, _, number, _ = one.receive()
        assert (kind, number) == (ERROR, 2)


def test_values(place: Path) -> None:
    with Peer(place) as one:
        assert one.call("add", 2, 3) == 5
        assert one.call("echo", kwargs={"a": [1, None, {"b": "\U0001f3dd"}]}) == {"a": [1, None, {"b": "\U0001f3dd"}]}
        assert one.call("later", 7) == 7
        assert one.call("size", "x" * 900_000) == 900_000
        assert len(one.call("echo", "x" * 900_000)) == 900_000


def test_errors_of_functions_and_of_atoll_can_be_told_apart(place: Path) -> None:
    with Peer(place) as one:
        raised = one.error({"function": "fail", "args": ["no"]})
        assert (raised["type"], raised["module"], raised["message"]) == ("ValueError", "builtins", "no")
        assert "in fail" in raised["traceback"]
        assert "atoll" not in raised
        assert one.error({"function": "nothing"})["atoll"] == "FunctionNotFound"
        assert one.error({"function": "not_a_number"})["atoll"] == "EncodeError"
        assert "stream" in one.error({"function": "count", "args": [3]})["message"]
        for request in ([], {}, {"function": 1}, {"function": "add", "args": {}}, {"function": "add", "timeout": "1"}):
            assert one.error(request)["atoll"] == "DecodeError", request
        one.number += 1
        one.sock.sendall(frame(CALL, JSON, one.number, b'{"function": NaN}'))
        assert one.answer()[1]["atoll"] == "DecodeError"
        died = one.error({"function": "die", "args": [7]})
        assert died["atoll"] == "WorkerDied"
        assert "last words" in died["message"]
        told = died["died"]
        assert (told["exit_code"], told["signal"], told["phase"]) == (7, None, "call")
        assert told["stderr"] == ["last words"]
        assert one.call("add", 1, 1) == 2


def test_streams(place: Path) -> None:
    with Peer(place) as one:
        for name in ("count", "count_slowly"):
            number = one.call(name, 1000, stream=True)
            items: list[int] = []
            ended = False
            while not ended:
                batch, ended = one.call("__next__", number, 256)
                assert ended or 0 < len(batch) <= 256
                items += batch
            assert items == list(range(1000))
            assert one.error({"function": "__next__", "args": [number, 1]})["atoll"] == "DecodeError"
        for args in ([], ["x", 1], [True, 1], [None], [1, 2, 3]):
            assert one.error({"function": "__next__", "args": args})["atoll"] == "DecodeError", args
        number = one.call("echo", [1, 2], stream=True)
        assert one.call("__next__", number) == [[1, 2], True], "whatever can be iterated over"
        assert one.error({"function": "add", "args": [1, 2], "stream": True})["atoll"] == "EncodeError"


def test_a_stream_that_fails_gives_what_came_before(place: Path) -> None:
    with Peer(place) as one:
        number = one.call("count", 5, 2, stream=True)
        items: list[int] = []
        while True:
            one.send({"function": "__next__", "args": [number, 10]})
            kind, answer = one.answer()
            if kind == ERROR:
                break
            items += answer[0]
        assert items == [0, 1]
        assert (answer["type"], answer["message"]) == ("ValueError", "no 2")


@pytest.mark.parametrize("how", ["close", "leave"])
def test_a_stream_that_is_not_read_to_its_end_is_closed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "s.sock"
    with serving(path), Peer(path) as watcher:
        with Peer(path) as one:
            number = one.call("count", 1_000_000, stream=True)
            one.call("__next__", number, 1)
            if how == "close":
                assert one.call("__close__", number) is None
                assert watcher.call("ended") == ["closed"]
                assert one.call("__close__", number) is None, "again"
        until(lambda: watcher.call("ended") == ["closed"], what="its end")


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_stream_whose_next_items_are_given_up_is_closed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "s.sock"
    with serving(path), Peer(path) as watcher, Peer(path) as one:
        number = one.call("count_patiently", 1_000_000, 1.0, stream=True)
        one.call("__next__", number, 1)
        if how == "cancel":
            one.send({"function": "__next__", "args": [number, 1]})
            one.ping()  # it is in progress by then
            one.cancel()
        else:
            one.send({"function": "__next__", "args": [number, 1], "timeout": 0.01})
        assert one.answer()[0] == ERROR
        until(lambda: watcher.call("ended") == ["closed"], what="its end")
        assert one.call("__close__", number) is None


def test_a_call_can_be_cancelled(place: Path) -> None:
    with Peer(place) as one:
        for _ in range(20):  # in whichever moment
            one.send({"function": "sleep", "args": [1000]})
            one.cancel()
            kind, answer = one.answer()
            assert (kind, answer["atoll"]) == (ERROR, "Cancelled")
        one.cancel()  # there is none
        one.cancel(99)
        assert one.call("add", 1, 1) == 2
        assert one.ping() == "running", "nothing else was said"


def test_a_cancelled_call_stops_the_code(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with serving(path), Peer(path) as one:
        one.call("add", 1, 1)
        begun = tmp_path / "begun"
        with Peer(path) as other:
            other.send({"function": "sleep", "args": [1000, str(begun)]})
            until(begun.exists)
        until(lambda: one.call("ended") == ["Cancelled"], what="the end of a call whose client has left")
        again = tmp_path / "again"
        while not again.exists():  # its time may have been over before it began
            one.send({"function": "sleep", "args": [1000, str(again)], "timeout": 1})
            assert one.answer()[1]["atoll"] == "CallTimeout"
        assert one.call("ended") == ["Cancelled", "Cancelled"]
        assert one.error({"function": "add", "args": [1, 2], "timeout": 0})["atoll"] == "CallTimeout"


def test_a_sign_of_life_comes_during_a_call(place: Path) -> None:
    with Peer(place) as one:
        one.send({"function": "sleep", "args": [1000]})
        for number in range(100):
            assert one.ping(number) == "running"
        one.cancel()
        assert one.answer()[0] == ERROR


def test_many_clients_at_once(place: Path) -> None:
    failures: list[str] = []

    def work(offset: int) -> None:
        try:
            with Peer(place) as one:
                for number in range(50):
                    assert one.call("add", offset, number) == offset + number
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert not failures


# -- who does not keep to the rules --------------------------------------------------------------------------------

LIES = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "unknown kind": frame(99, RAW, 0),
    "another magic": frame(HELLO, RAW, 0, b"atal" + GREETING[4:]),
    "another version": frame(HELLO, RAW, 0, struct.pack("<4sHH", b"atol", 2, 4)),
    "no JSON": frame(HELLO, RAW, 0, struct.pack("<4sHH", b"atol", 1, 2)),
    "short greeting": frame(HELLO, RAW, 0, GREETING[:-1]),
    "load before hello": frame(LOAD, JSON, 0, b"null"),
    "ping before load": frame(PING, RAW, 1),
    "python": frame(HELLO, RAW, 0, GREETING) + frame(LOAD, 1, 0, b"\x80\x05N."),
    "buffers": struct.pack("<BBHIQ", HELLO, RAW, 1, 8, 0) + GREETING,
    "oversized": struct.pack("<BBHIQ", HELLO, RAW, 0, 1_000_001, 0),
}
LATE_LIES = {
    "oversized": struct.pack("<BBHIQ", CALL, JSON, 0, 1_000_001, 1),
    "another call id": frame(CALL, JSON, 2, b"{}"),
    "python": frame(CALL, 1, 1, b"\x80\x05N."),
    "two calls": frame(CALL, JSON, 1, b'{"function":"sleep","args":[1000]}') + frame(CALL, JSON, 2, b"{}"),
    "a second hello": frame(HELLO, RAW, 0, GREETING),
    "a second load": frame(LOAD, JSON, 0, b"null"),
    "an answer": frame(RESULT, JSON, 0, b"1"),
    "stacks": frame(40, RAW, 0),
    "short cancel": frame(CANCEL, RAW, 1, b"\0"),
}


@pytest.mark.parametrize("name", LIES)
def test_who_does_not_greet_as_is_due_is_left(place: Path, name: str) -> None:
    with Peer(place, load=...) as liar, Peer(place) as one:
        liar.sock.sendall(LIES[name])
        assert liar.is_ended()
        assert one.call("add", 1, 1) == 2


@pytest.mark.parametrize("name", LATE_LIES)
def test_who_breaks_the_rules_later_is_left(place: Path, name: str) -> None:
    with Peer(place) as liar, Peer(place) as one:
        liar.sock.sendall(LATE_LIES[name])
        assert liar.is_ended()
        assert one.call("add", 1, 1) == 2


def test_what_is_loaded_already_cannot_be_loaded(place: Path) -> None:
    with Peer(place, load={"entry": {"kind": "file", "path": "/etc/passwd", "class": None}}) as one:
        assert one.ready_kind == ERROR
        assert one.about["error"]["atoll"] == "DecodeError"
        assert "loaded already" in one.about["error"]["message"]
        assert one.is_ended()


def test_connecting_and_leaving_again_and_again(place: Path) -> None:
    for number in range(1000):
        with Peer(place, load=...) as one:
            if number % 3 == 1:
                one.sock.sendall(frame(HELLO, RAW, 0, GREETING)[: number % 24])
            elif number % 3 == 2:
                one.load()
                one.send({"function": "add", "args": [1, 2]})
    with Peer(place) as one:
        assert one.call("add", 1, 1) == 2


def test_a_client_that_does_not_read_harms_nobody(place: Path) -> None:
    with Peer(place) as slow, Peer(place) as one:
        slow.sock.settimeout(0.2)
        # Signs of life that nobody reads, until no more are taken.
        with pytest.raises(TimeoutError):
            slow.sock.sendall(frame(PING, RAW, 1) * 1_000_000)
        assert one.call("add", 1, 1) == 2


def test_there_are_only_so_many_clients(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with serving(path, "--max-connections", "3"):
        with Peer(path) as one, Peer(path), Peer(path):
            with Peer(path) as more:
                assert more.ready_kind == ERROR
                assert more.about["error"]["atoll"] == "TooManyConnections"
                assert more.is_ended()
            assert one.call("add", 1, 1) == 2
            silent = [Peer(path, load=...) for _ in range(150)]
            assert any(peer.is_ended() for peer in reversed(silent)), "beyond those that are told"
            for peer in silent:
                peer.close()

        def is_served() -> bool:
            with Peer(path) as late:
                return late.ready_kind == READY

        until(is_served, what="room for others")


@pytest.mark.slow
def test_who_stands_still_in_the_middle_is_left(place: Path) -> None:
    with Peer(place, load=...) as silent, Peer(place) as half, Peer(place) as idle, Peer(place) as busy:
        half.sock.sendall(frame(CALL, JSON, 1, b"x" * 1000)[:500])
        busy.send({"function": "sleep", "args": [1000]})
        for peer in (silent, half):
            assert peer.is_ended()
        assert idle.call("add", 1, 1) == 2, "between calls there is no hurry"
        assert busy.ping() == "running", "nor in one"


@pytest.mark.slow
def test_who_greets_byte_by_byte_is_left(place: Path) -> None:
    greeting = frame(HELLO, RAW, 0, GREETING) + frame(LOAD, JSON, 0, b"null")
    with Peer(place, load=...) as slow, Peer(place) as one:
        slow.sock.settimeout(0.5)  # so long for each byte: twice the time that there is
        ended = False
        for number in range(len(greeting)):
            try:
                slow.sock.sendall(greeting[number : number + 1])
                ended = not slow.sock.recv(100)
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
            if ended:
                break
        assert ended
        assert one.call("add", 1, 1) == 2


# -- the socket, and the end ---------------------------------------------------------------------------------------


def test_two_at_one_place(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    both = [start(path), start(path)]
    try:
        until(lambda: any(one.poll() is not None for one in both), what="one to give way")
        (loser,) = (one for one in both if one.poll() is not None)
        (winner,) = (one for one in both if one.poll() is None)
        with Peer(path) as one:
            assert one.call("add", 1, 1) == 2
        winner.send_signal(signal.SIGINT)
        assert "a service listens here already" in loser.communicate()[1]
        assert loser.returncode == 1
        _, log = winner.communicate(timeout=WITHIN)
        assert winner.returncode == 0, log
    finally:
        for one in both:
            with one:
                one.kill()


def test_what_one_left_that_was_killed_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with start(path) as process:
        until(lambda: is_listened_at(path))
        workers = children_of(process.pid)
        process.kill()
        process.communicate()
    until_gone(*workers)
    assert path.exists()
    with serving(path):
        until(lambda: _answers(path))


def _answers(path: Path) -> bool:
    try:
        with Peer(path) as one:
            return bool(one.call("add", 1, 1) == 2)
    except OSError:
        return False


@pytest.mark.parametrize("what", ["file", "folder", "far", "long"])
def test_where_no_socket_can_be(tmp_path: Path, what: str) -> None:
    path = {"far": tmp_path / "no" / "s.sock", "long": tmp_path / ("x" * 120)}.get(what, tmp_path / "s.sock")
    if what == "file":
        path.write_text("mine")
    elif what == "folder":
        path.mkdir()
    with start(path) as process:
        _, log = process.communicate(timeout=WITHIN)
    assert process.returncode == 1
    assert str(path) in log.replace("\n", "")
    assert "Traceback" not in log
    if what == "file":
        assert path.read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_calls_in_progress_come_to_their_end(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "s.sock"
    with (
        serving(path) as process,
        Peer(path) as busy,
        Peer(path) as idle,
        Peer(path) as streaming,
        Peer(path) as called,
    ):
        assert called.call("add", 1, 1) == 2
        stream = streaming.call("count", 3, stream=True)
        busy.send({"function": "sleep", "args": [1]})
        busy.ping()
        process.send_signal(number)
        assert idle.is_ended()
        assert not path.exists(), "nobody else can come"
        try:  # for a moment one is told why
            assert called.error({"function": "add", "args": [1, 1]})["atoll"] == "ServiceClosed"
            assert called.is_ended()
        except (Ended, BrokenPipeError):
            pass
        assert busy.answer() == (RESULT, "slept")
        assert busy.is_ended()
        assert streaming.error({"function": "add", "args": [1, 1]})["atoll"] == "ServiceClosed"
        items: list[int] = []
        ended = False
        while not ended:
            batch, ended = streaming.call("__next__", stream, 2)
            items += batch
        assert items == [0, 1, 2]
        assert streaming.is_ended()


@pytest.mark.parametrize("how", ["grace", "twice"])
def test_calls_that_do_not_end_are_given_up(tmp_path: Path, how: str) -> None:
    path = tmp_path / "s.sock"
    grace = "0.2" if how == "grace" else "1000"
    with serving(path, "--grace", grace, status=128 + signal.SIGTERM) as process, Peer(path) as busy:
        busy.send({"function": "sleep", "args": [1000]})
        busy.ping()
        workers = children_of(process.pid)
        assert workers
        process.send_signal(signal.SIGTERM)
        if how == "twice":
            until(lambda: not path.exists())
            process.send_signal(signal.SIGTERM)
        assert busy.is_ended()
        process.wait(WITHIN)
        until_gone(*workers)


def test_a_service_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise ValueError('not today')\n")
    with start(tmp_path / "s.sock", service=file) as process:
        _, log = process.communicate(timeout=WITHIN)
    assert process.returncode == 1
    assert "not today" in log
    assert not (tmp_path / "s.sock").exists()


@pytest.mark.parametrize("arguments", [[], ["--stdio", "--socket", "s"], ["--socket", "s", "--newline"]])
def test_wrong_usage(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "atoll.cli", "serve", str(SERVICE), *arguments]
    environ = {**os.environ, "PYTHONPATH": str(Path(atoll.__file__).parents[1])}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "--s" in done.stderr
