# SPDX-License-Identifier: Apache-2.0
"""``atoll serve --stdio``: a real process, spoken to in bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import atoll
from conditions import WITHIN, children_of, until, until_gone

pytest.importorskip("typer")

SERVICE = """
import os, time
from atoll_worker import cancelled, expose, progress

@expose
def add(a, b=0):
    print("printed", flush=True)
    os.write(1, b"written\\n")
    return a + b

@expose
def nothing():
    return None

@expose
def leave_a_mark(path):
    open(path, "w").close()

@expose
def wait(path):
    open(path).close()  # a FIFO: until somebody opens its other end
    return "waited"

@expose
def hang():
    while not cancelled():
        time.sleep(0.001)

class ModelError(Exception):
    pass

@expose
def fail(kind):
    errors = {"value": ValueError("wrong value"), "type": TypeError("inside"), "own": ModelError()}
    raise errors.get(kind, SystemExit(3))

@expose
def not_json():
    return {"a": [1.0, float("nan")]}

@expose
def steps(n):
    for number in range(n):
        progress(number + 1, n, f"step {number + 1}")
    return "done"

@expose
def half():
    progress(0.5)

@expose
def count(n, fail_at=None, size=0):
    for number in range(n):
        if number == fail_at:
            raise LookupError("no more")
        yield {"n": number, "x": "x" * size} if size else number

@expose
async def later(value):
    return value

@expose
def die(code):
    os._exit(code)

@expose
def same(value):
    return value
"""


class Peer:
    """The program that started the server."""

    def __init__(self, process: subprocess.Popen[bytes], *, lines: bool) -> None:
        self.process = process
        self.lines = lines
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout
        self._number = 0

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.stdin.write(data)
        self.stdin.flush()

    def send(self, message: Any) -> None:
        """Send a message."""
        body = json.dumps(message).encode()
        self.write(body + b"\n" if self.lines else b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    def request(self, method: str, params: Any = ..., number: Any = ...) -> Any:
        """Send a request; its id."""
        if number is ...:
            self._number += 1
            number = self._number
        message = {"jsonrpc": "2.0", "id": number, "method": method}
        self.send(message if params is ... else {**message, "params": params})
        return number

    def notify(self, method: str, params: Any = ...) -> None:
        """Send a notification."""
        message = {"jsonrpc": "2.0", "method": method}
        self.send(message if params is ... else {**message, "params": params})

    def read(self) -> Any:
        """The next message; None at the end."""
        if self.lines:
            line = self.stdout.readline()
            return json.loads(line) if line else None
        length = None
        while line := self.stdout.readline():
            if line == b"\r\n":
                assert length is not None
                body = self.stdout.read(length)
                assert len(body) == length
                return json.loads(body)
            name, _, value = line.partition(b":")
            assert name == b"Content-Length"
            length = int(value)
        return None

    def answer(self, method: str, params: Any = ...) -> Any:
        """The answer to a request, which is the next message."""
        number = self.request(method, params)
        message = self.read()
        assert message["jsonrpc"] == "2.0"
        assert message["id"] == number
        return message

    def result(self, method: str, params: Any = ...) -> Any:
        """The result of a request."""
        answer = self.answer(method, params)
        assert "error" not in answer, answer
        return answer["result"]

    def error(self, method: str, params: Any = ...) -> Any:
        """The error of a request."""
        answer = self.answer(method, params)
        assert "result" not in answer
        return answer["error"]

    def end(self) -> int:
        """Close its input, and wait for its end; the exit status."""
        self.stdin.close()
        assert self.read() is None
        return self.process.wait(WITHIN)


Serve = Callable[..., Any]


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """The file of a service."""
    file = tmp_path / "numbers_service.py"
    file.write_text(SERVICE)
    return file


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "atoll.cli", "serve", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(atoll.__file__).parents[1]), "COLUMNS": "200"}


@contextmanager
def serving(file: Path, *options: str, log: int | None = subprocess.DEVNULL) -> Iterator[Peer]:
    """A server, which is gone at the end."""
    with subprocess.Popen(
        command("--stdio", file, *options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment(),
    ) as process:
        try:
            yield Peer(process, lines="--newline" in options)
        finally:
            process.kill()


@pytest.fixture(scope="module", params=["headers", "lines"])
def conversation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """One server for many tests, in each framing."""
    file = tmp_path_factory.mktemp("service") / "numbers_service.py"
    file.write_text(SERVICE)
    with serving(file, *(["--newline"] if request.param == "lines" else [])) as one:
        yield one
        assert one.end() == 0


@pytest.fixture
def peer(conversation: Peer) -> Iterator[Peer]:
    """A conversation with the service, in each framing; nothing is said at its end that was not asked for."""
    yield conversation
    number = conversation.request("nothing", number="the last one")
    assert conversation.read() == {"jsonrpc": "2.0", "id": number, "result": None}


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO that ``wait`` waits for."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


# -- requests ------------------------------------------------------------------------------------------------------


def test_results(peer: Peer) -> None:
    assert peer.result("add", [1, 2]) == 3
    assert peer.result("add", {"a": 1, "b": 2}) == 3
    assert peer.result("add", {"a": "ü", "b": "€"}) == "ü€"
    assert peer.result("nothing") is None
    assert peer.result("later", ["soon"]) == "soon"
    assert peer.result("same", {"value": {"deep": [1, {"a": None}], "big": 2**70}}) == {
        "deep": [1, {"a": None}],
        "big": 2**70,
    }


def test_ids_come_back_as_they_were(peer: Peer) -> None:
    for number in (0, -7, 2**60, 1.5, 1.0, "1", "", "ü", None):
        peer.request("nothing", number=number)
        answer = peer.read()
        assert answer == {"jsonrpc": "2.0", "id": number, "result": None}
        assert type(answer["id"]) is type(number)


def test_errors(peer: Peer) -> None:
    error = peer.error("fail", ["value"])
    assert (error["code"], error["message"], error["data"]["type"]) == (-32000, "wrong value", "ValueError")
    assert error["data"]["traceback"].startswith("Traceback")
    assert "numbers_service.py" in error["data"]["traceback"]
    assert peer.error("fail", ["own"])["data"]["type"] == "numbers_service.ModelError"
    assert peer.error("fail", ["exit"])["data"]["type"] == "SystemExit"
    assert peer.error("fail", ["type"])["code"] == -32000, "raised inside of the function, not by the call"
    for params in ([], [1, 2, 3], {"a": 1, "c": 2}, {"b": 1}):
        error = peer.error("add", params)
        assert error["code"] == -32602
        assert "add()" in error["message"]
    error = peer.error("subtract", [1])
    assert error["code"] == -32601
    assert "it exposes: add, count," in error["message"]
    error = peer.error("not_json")
    assert error["code"] == -32603
    assert "the result['a'][1] cannot be written as JSON" in error["message"]
    assert peer.result("nothing") is None


@pytest.mark.parametrize("method", ["__describe__", "__map__", "__with_meta__", "__invoke__", "", "$/unknown", "rpc.x"])
def test_only_what_the_service_exposes_can_be_called(peer: Peer, method: str) -> None:
    assert peer.error(method, [])["code"] == -32601


def test_what_is_no_request(peer: Peer) -> None:
    for message, code, number in (
        ({"id": 5, "method": "nothing"}, -32600, 5),
        ({"jsonrpc": "2.0", "id": [], "method": "nothing"}, -32600, None),
        ({"jsonrpc": "2.0", "id": "x", "method": "nothing", "params": 1}, -32600, "x"),
        ([], -32600, None),
        (17, -32600, None),
    ):
        peer.send(message)
        answer = peer.read()
        assert (answer["id"], answer["error"]["code"]) == (number, code)
    peer.write(b"{]\n" if peer.lines else b"Content-Length: 2\r\n\r\n{]")
    answer = peer.read()
    assert (answer["id"], answer["error"]["code"]) == (None, -32700)
    assert peer.result("nothing") is None


def test_notifications_are_never_answered(peer: Peer, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    peer.notify("leave_a_mark", [str(mark)])
    peer.notify("fail", ["value"])
    peer.notify("subtract")
    peer.notify("add", {"wrong": 1})
    peer.notify("$/setTrace", {"value": "off"})
    peer.send({"jsonrpc": "2.0", "id": 99, "result": "to what nobody asked"})
    assert peer.result("nothing") is None
    assert mark.exists()


def test_batches(peer: Peer) -> None:
    peer.send(
        [
            {"jsonrpc": "2.0", "id": 1, "method": "add", "params": [1, 2]},
            {"jsonrpc": "2.0", "method": "nothing"},
            {"jsonrpc": "2.0", "id": "2", "method": "fail", "params": ["value"]},
            {"foo": "boo"},
            {"jsonrpc": "2.0", "id": 3, "method": "not_json"},
        ]
    )
    answers = {one["id"]: one for one in peer.read()}
    assert answers[1]["result"] == 3
    assert answers["2"]["error"]["code"] == -32000
    assert answers[None]["error"]["code"] == -32600
    assert answers[3]["error"]["code"] == -32603
    assert len(answers) == 4
    peer.send([{"jsonrpc": "2.0", "method": "nothing"}, {"jsonrpc": "2.0", "method": "fail", "params": ["own"]}])
    assert peer.result("nothing") is None, "nothing was said of that batch"


def test_a_service_of_one_object(tmp_path: Path) -> None:
    file = tmp_path / "greeting.py"
    file.write_text(
        "from atoll_worker import ServiceBase\n"
        "class Greeting(ServiceBase):\n"
        "    def validate_input(self, params):\n"
        "        assert 'name' in params, 'name is missing'\n"
        "    def process(self, params):\n"
        "        return {'message': 'Hello ' + params['name']}\n"
    )
    with serving(file) as peer:
        for params in ({"name": "Alice"}, [{"name": "Alice"}], {"params": {"name": "Alice"}}):
            assert peer.result("process", params) == {"message": "Hello Alice"}
        assert peer.error("process", {})["message"] == "name is missing"
        assert peer.error("process", [1])["code"] == -32602
        assert peer.end() == 0


# -- while a call runs ---------------------------------------------------------------------------------------------


def test_reading_goes_on_while_a_function_runs(peer: Peer, gate: Path) -> None:
    running = peer.request("wait", [str(gate)])
    waiting = peer.request("nothing")
    peer.send("no request")
    assert peer.read()["error"]["code"] == -32600
    assert peer.error("no such function")["code"] == -32601
    with gate.open("w"):
        assert peer.read() == {"jsonrpc": "2.0", "id": running, "result": "waited"}
    assert peer.read()["id"] == waiting


def test_workers_answer_side_by_side(service: Path, gate: Path) -> None:
    with serving(service, "--workers", "2") as peer:
        running = peer.request("wait", [str(gate)])
        assert peer.result("add", [1, 2]) == 3
        with gate.open("w"):
            assert peer.read()["id"] == running
        assert peer.end() == 0


def test_cancelling(peer: Peer, gate: Path) -> None:
    running = peer.request("wait", [str(gate)])
    waiting = peer.request("nothing", number="waiting")
    peer.notify("$/cancelRequest", {"id": "waiting"})
    answer = peer.read()
    assert (answer["id"], answer["error"]["code"]) == (waiting, -32800)
    peer.notify("$/cancelRequest", {"id": str(running)})
    peer.notify("$/cancelRequest", {"id": [running]})
    peer.notify("$/cancelRequest", {})
    peer.notify("$/cancelRequest", {"id": running})
    answer = peer.read()
    assert (answer["id"], answer["error"]["code"]) == (running, -32800)
    assert peer.result("add", [1]) == 1, "the worker goes on"
    peer.notify("$/cancelRequest", {"id": running})
    assert peer.result("add", [2]) == 2


def test_cancelling_what_looks_whether_it_was_cancelled(peer: Peer) -> None:
    number = peer.request("hang")
    peer.notify("$/cancelRequest", {"id": number})
    answer = peer.read()
    assert (answer["id"], answer["error"]["code"]) == (number, -32800)


def test_an_id_in_use(peer: Peer, gate: Path) -> None:
    peer.request("wait", [str(gate)], number=1)
    peer.request("nothing", number=1)
    answer = peer.read()
    assert (answer["id"], answer["error"]["code"]) == (1, -32600)
    peer.request("nothing", number="1")
    with gate.open("w"):
        assert peer.read() == {"jsonrpc": "2.0", "id": 1, "result": "waited"}
    assert peer.read()["id"] == "1"
    peer.request("nothing", number=1)
    assert peer.read()["result"] is None


def progress(message: Any, token: Any) -> Any:
    """The value of a message that is one of progress."""
    assert message["method"] == "$/progress"
    assert "id" not in message
    assert message["params"]["token"] == token
    return message["params"]["value"]


@pytest.mark.parametrize("token", ["a token", 7])
def test_progress(peer: Peer, token: Any) -> None:
    number = peer.request("steps", {"n": 2, "workDoneToken": token})
    assert progress(peer.read(), token) == {"kind": "begin", "title": "steps"}
    for done in (1, 2):
        assert progress(peer.read(), token) == {
            "kind": "report",
            "done": done,
            "total": 2,
            "percentage": 50 * done,
            "message": f"step {done}",
        }
    assert progress(peer.read(), token) == {"kind": "end"}
    assert peer.read() == {"jsonrpc": "2.0", "id": number, "result": "done"}
    assert peer.result("steps", {"n": 2}) == "done", "nobody asked for progress"
    peer.request("half", {"workDoneToken": token})
    assert [progress(peer.read(), token) for _ in range(3)][1] == {"kind": "report", "done": 0.5}
    assert peer.read()["result"] is None
    assert peer.result("nothing", {"workDoneToken": token}) is None, "the function takes no such parameter"


def test_streams(peer: Peer) -> None:
    assert peer.result("count", [3]) == [0, 1, 2]
    number = peer.request("count", {"n": 3, "partialResultToken": "items"})
    assert [progress(peer.read(), "items") for _ in range(3)] == [[0], [1], [2]]
    assert peer.read() == {"jsonrpc": "2.0", "id": number, "result": []}
    assert peer.error("count", [3, 1])["message"] == "no more"
    peer.request("count", {"n": 3, "fail_at": 1, "partialResultToken": "items"})
    assert progress(peer.read(), "items") == [0]
    assert peer.read()["error"]["data"]["type"] == "LookupError"


def test_a_stream_is_cancelled(peer: Peer) -> None:
    number = peer.request("count", {"n": 1_000_000_000, "partialResultToken": "items"})
    assert progress(peer.read(), "items") == [0]
    peer.notify("$/cancelRequest", {"id": number})
    while (message := peer.read()).get("id") != number:
        progress(message, "items")
    assert message["error"]["code"] == -32800
    assert peer.result("add", [1]) == 1


def test_who_reads_late_gets_everything(peer: Peer) -> None:
    """More than any pipe or buffer holds."""
    number = peer.request("count", {"n": 300, "size": 50_000, "partialResultToken": "items"})
    other = peer.request("same", ["y" * 3_000_000])
    got = []
    while (message := peer.read()).get("id") != number:
        if message.get("id") == other:
            assert len(message["result"]) == 3_000_000
        else:
            got += [item["n"] for item in progress(message, "items")]
    assert got == list(range(300))


# -- bytes ---------------------------------------------------------------------------------------------------------


def test_what_is_too_large_is_refused_and_passed_over(service: Path) -> None:
    for options in ([], ["--newline"]):
        with serving(service, "--max-size", "1kB", *options) as peer:
            peer.request("same", ["x" * 2000])
            answer = peer.read()
            assert (answer["id"], answer["error"]["code"]) == (None, -32600)
            assert "at most 1,000 are read" in answer["error"]["message"]
            assert peer.result("same", ["x" * 900]) == "x" * 900
            assert peer.end() == 0


def test_what_cannot_be_taken_apart_ends_the_conversation(service: Path) -> None:
    with serving(service) as peer:
        peer.write(b'{"jsonrpc": "2.0", "id": 1, "method": "nothing"}\n')
        answer = peer.read()
        assert answer["error"]["code"] == -32700
        assert "--newline" in answer["error"]["message"]
        assert peer.read() is None
        assert peer.process.wait(WITHIN) == 1


def test_what_was_asked_is_answered_though_the_stream_has_ended(service: Path) -> None:
    requests = "".join(
        json.dumps({"jsonrpc": "2.0", "id": number, "method": "add", "params": [number]}) + "\n" for number in range(50)
    )
    done = subprocess.run(
        command("--stdio", "--newline", service),
        input=requests.rstrip("\n").encode(),
        capture_output=True,
        timeout=60,
        env=environment(),
    )
    assert done.returncode == 0
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["id"]: one["result"] for one in answers} == {number: number for number in range(50)}
    assert done.stderr.count(b"printed") == 50, "what is printed is logged"


def test_requests_may_come_from_a_file(service: Path, tmp_path: Path) -> None:
    requests = tmp_path / "requests"
    requests.write_text('{"jsonrpc": "2.0", "id": 1, "method": "add", "params": [1, 2]}\n')
    with requests.open() as file, (tmp_path / "answers").open("w") as answers:
        done = subprocess.run(
            command("--stdio", "--newline", service), stdin=file, stdout=answers, timeout=60, env=environment()
        )
    assert done.returncode == 0
    assert json.loads((tmp_path / "answers").read_text())["result"] == 3


# -- ends ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies(peer: Peer) -> None:
    error = peer.error("die", [3])
    assert (error["code"], error["data"]["type"]) == (-32011, "WorkerDied")
    assert "exited with code 3" in error["message"]
    assert peer.result("add", [1]) == 1


def test_a_call_that_takes_too_long(service: Path, gate: Path) -> None:
    with serving(service, "--timeout", "0.05") as peer:
        error = peer.error("wait", [str(gate)])
        assert (error["code"], error["data"]["type"]) == (-32010, "CallTimeout")
        assert peer.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(service: Path, gate: Path, number: signal.Signals) -> None:
    with serving(service) as peer:
        assert peer.result("nothing") is None
        (worker,) = children_of(peer.process.pid)
        running = peer.request("wait", [str(gate)])
        peer.send("to know that it was read")
        assert peer.read()["error"]["code"] == -32600
        peer.process.send_signal(number)
        answer = peer.read()
        assert (answer["id"], answer["error"]["code"]) == (running, -32800)
        assert peer.process.wait(WITHIN) == 128 + number
        until_gone(worker)


def test_a_signal_ends_it_though_nobody_reads(service: Path) -> None:
    with serving(service) as peer:
        assert peer.result("nothing") is None
        peer.request("count", {"n": 1_000_000_000, "size": 50_000, "partialResultToken": "items"})
        assert progress(peer.read(), "items")
        peer.process.send_signal(signal.SIGTERM)
        assert peer.process.wait(WITHIN) == 128 + signal.SIGTERM


def test_a_signal_ends_it_after_the_end_of_the_stream(service: Path) -> None:
    """All was called, and nobody reads the last answer."""
    with serving(service) as peer:
        assert peer.result("nothing") is None
        (worker,) = children_of(peer.process.pid)
        peer.request("same", ["x" * 3_000_000])
        assert peer.stdout.read(1) == b"C"
        peer.stdin.close()
        peer.process.send_signal(signal.SIGTERM)
        assert peer.process.wait(WITHIN) == 128 + signal.SIGTERM
        until_gone(worker)


def test_who_asked_is_gone(service: Path) -> None:
    with serving(service) as peer:
        assert peer.result("nothing") is None
        (worker,) = children_of(peer.process.pid)
        peer.stdout.close()
        peer.request("hang")
        peer.request("add", [1])
        peer.send("no request")  # its answer finds nobody
        assert peer.process.wait(WITHIN) == 1
        until_gone(worker)


def test_who_asked_is_gone_before_the_last_answer(service: Path) -> None:
    """Nothing is written that would tell: a function runs that never ends."""
    with serving(service) as peer:
        assert peer.result("nothing") is None
        (worker,) = children_of(peer.process.pid)
        peer.request("hang")
        peer.stdin.close()
        peer.stdout.close()
        assert peer.process.wait(WITHIN) == 1
        until_gone(worker)


def test_it_is_killed(service: Path) -> None:
    with serving(service) as peer:
        assert peer.result("nothing") is None
        (worker,) = children_of(peer.process.pid)
        peer.process.kill()
        peer.process.wait(WITHIN)
        until_gone(worker)


def test_a_service_that_cannot_start(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module_anywhere")
    for source, says in ((file, b"no_such_module_anywhere"), (tmp_path / "nowhere.py", b"there is no such file")):
        done = subprocess.run(command("--stdio", source), input=b"", capture_output=True, timeout=60, env=environment())
        assert done.returncode == 1
        assert done.stdout == b""
        assert says in done.stderr


def test_wrong_usage(service: Path) -> None:
    from typer.testing import CliRunner

    from atoll.cli.app import app

    for arguments, says in (
        ([service], "--stdio"),
        (["--stdio", service, "--max-size", "much"], "--max-size: found 'much'"),
        (["--stdio", service, "--max-size", "0"], "--max-size"),
        (["--stdio", service, "--log-level", "loud"], "--log-level: found 'loud'"),
        (["--stdio", service, "--workers", "0"], "--workers"),
    ):
        done = CliRunner().invoke(app, ["serve", *map(str, arguments)], env={"COLUMNS": "200"})
        assert done.exit_code == 2, done.output
        assert says in done.output


def test_closed_streams(service: Path) -> None:
    line = " ".join(command("--stdio", service))
    done = subprocess.run(["/bin/sh", "-c", f"{line} <&-"], capture_output=True, timeout=60, env=environment())
    assert done.returncode == 1
    assert b"standard input and output are needed" in done.stderr


def test_every_request_is_answered_once_whatever_happens(service: Path) -> None:
    """Workers die, functions raise, calls are given up, all at the same time."""
    with serving(service, "--workers", "2") as peer:
        kinds = [("same", [1]), ("die", [1]), ("fail", ["own"]), ("hang", []), ("count", [3]), ("nowhere", [])]
        for number in range(60):
            method, params = kinds[number % len(kinds)] if number % 20 else ("hang", [])
            if method == "die" and number > 10:
                method, params = "same", [number]
            peer.request(method, params, number=number)
            if method == "hang":
                peer.notify("$/cancelRequest", {"id": number})
        answers = [peer.read() for _ in range(60)]
        assert sorted(one["id"] for one in answers) == list(range(60))
        assert {one["error"]["code"] for one in answers if "error" in one} >= {-32000, -32011, -32601, -32800}
        assert peer.result("add", [1]) == 1
        assert peer.end() == 0


def test_many_requests(service: Path) -> None:
    with serving(service, "--workers", "2") as peer:
        for number in range(300):
            peer.request("same", [number], number=number)
        answers = [peer.read() for _ in range(300)]
        assert {one["id"]: one["result"] for one in answers} == {number: number for number in range(300)}
        until(lambda: len(children_of(peer.process.pid)) == 2)
        assert peer.end() == 0
