# SPDX-License-Identifier: Apache-2.0
"""Calls in JSON, of a real worker: what docs/wire.md promises to programs in other languages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.processes import start_process
from atoll_worker import wire
from atoll_worker.connection import Connection, DeadlinePassed
from conditions import until

PATIENCE = 30.0
SERVICE = Path(__file__).with_name("services") / "calls.py"


class Caller:
    """A minimal client that speaks JSON only."""

    def __init__(self, path: Path) -> None:
        self.process = start_process(sys.executable, "calls", dict(os.environ), use_lane=False)
        self.control = self.process.control
        self.connection = Connection(self.process.connections[0].sock, None, "client")
        self.connection.send(wire.HELLO, wire.RAW, wire.hello())
        wire.check_hello(self.connection.receive(self.until()).payload)
        load = {"entry": {"kind": "file", "path": str(path), "class": None}}
        self.connection.send(wire.LOAD, wire.JSON, json.dumps(load).encode())
        frame = self.connection.receive(self.until())
        assert frame.codec == wire.JSON
        self.is_ready = frame.kind == wire.READY
        self.report = json.loads(bytes(frame.payload))

    @staticmethod
    def until() -> float:
        return time.monotonic() + PATIENCE

    def send(self, request: Any) -> None:
        self.connection.send(wire.CALL, wire.JSON, json.dumps(request).encode())

    def answer(self) -> tuple[int, Any]:
        frame = self.connection.receive(self.until())
        assert frame.codec == wire.JSON
        return frame.kind, json.loads(bytes(frame.payload))

    def call(self, name: str, *args: Any, **more: Any) -> Any:
        self.send({"function": name, "args": args, **more})
        kind, answer = self.answer()
        assert kind == wire.RESULT, answer
        return answer

    def error(self, request: Any) -> Any:
        self.send(request)
        kind, answer = self.answer()
        assert kind == wire.ERROR, answer
        return answer

    def cancel(self, force: bool) -> None:
        payload = wire.CANCEL_PAYLOAD.pack(0, force)
        frame = wire.pack(wire.CANCEL, wire.RAW, self.connection.conversation.call_id, payload)
        self.control.sendall(b"".join(bytes(piece) for piece in frame))

    def close(self) -> None:
        self.connection.close()
        self.process.kill_after(PATIENCE)
        assert self.process.exited.wait(PATIENCE)
        self.process.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Caller]:
    caller = Caller(SERVICE)
    yield caller
    caller.close()
    assert caller.process.exit_code == 0


def test_ready_says_what_there_is(shared: Caller) -> None:
    assert shared.is_ready
    assert shared.report["version"] == list(sys.version_info[:3])
    assert "add" in shared.report["functions"]
    assert {"count", "count_slowly"} <= set(shared.report["streams"])
    assert "add" not in shared.report["streams"]
    assert shared.report["cooperative"] is True


def test_values(shared: Caller) -> None:
    assert shared.call("add", 2, 3) == 5
    assert shared.call("echo", kwargs={"a": [1, None, {"b": "\U0001f3dd"}]}) == {"a": [1, None, {"b": "\U0001f3dd"}]}
    assert shared.call("later", 7) == 7
    assert shared.call("size", "x" * 3_000_000) == 3_000_000


def test_errors_of_functions_and_of_the_wire_can_be_told_apart(shared: Caller) -> None:
    raised = shared.error({"function": "fail", "args": ["no"]})
    assert (raised["type"], raised["module"], raised["message"]) == ("ValueError", "builtins", "no")
    assert "in fail" in raised["traceback"]
    assert "atoll" not in raised
    assert "channel.py" not in raised["traceback"]
    assert shared.error({"function": "nothing"})["atoll"] == "FunctionNotFound"
    assert shared.error({"function": "not_a_number"})["atoll"] == "EncodeError"
    for request in ([], {}, {"function": 1}, {"function": "add", "args": {}}, {"function": "add", "timeout": "1"}):
        assert shared.error(request)["atoll"] == "DecodeError", request
    assert "JSON" in shared.error({"function": "call_back"})["message"]
    assert shared.call("add", 1, 1) == 2


def test_streams(shared: Caller) -> None:
    for name in ("count", "count_slowly"):
        number = shared.call(name, 1000, stream=True)
        items: list[int] = []
        ended = False
        while not ended:
            batch, ended = shared.call("__next__", number, 256)
            assert ended or 0 < len(batch) <= 256
            items += batch
        assert items == list(range(1000))
        assert shared.error({"function": "__next__", "args": [number, 1]})["type"] == "LookupError"
    assert shared.call("echo", [1, 2], stream=True) > 0, "whatever can be iterated over"


def test_a_stream_that_fails_gives_what_came_before(shared: Caller) -> None:
    number = shared.call("count", 5, 2, stream=True)
    items: list[int] = []
    while True:
        shared.send({"function": "__next__", "args": [number, 10]})
        kind, answer = shared.answer()
        if kind == wire.ERROR:
            break
        items += answer[0]
    assert items == [0, 1]
    assert (answer["type"], answer["message"]) == ("ValueError", "no 2")


def test_a_stream_that_is_closed_runs_its_finally(shared: Caller) -> None:
    number = shared.call("count", 5, stream=True)
    shared.call("__next__", number, 1)
    before = shared.call("ended").count("closed")
    assert shared.call("__close__", number) is None
    assert shared.call("ended").count("closed") == before + 1
    assert shared.call("__close__", number) is None, "again"


def test_a_call_can_be_cancelled(shared: Caller, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shared.send({"function": "sleep", "args": [1000, str(begun)]})
    until(begun.exists, PATIENCE, "the call to begin")  # before that, what notes its end might not be there yet
    shared.cancel(force=True)
    kind, answer = shared.answer()
    assert kind == wire.ERROR
    assert answer["atoll"] == "Cancelled"
    assert shared.call("ended")[-1] == "Cancelled"


def test_a_call_can_be_cancelled_in_whichever_moment(shared: Caller) -> None:
    shared.send({"function": "sleep", "args": [1000]})
    deadline = time.monotonic() + PATIENCE
    while True:  # perhaps it has not begun yet
        shared.cancel(force=True)
        try:
            frame = shared.connection.receive(time.monotonic() + 0.05)
        except DeadlinePassed:
            assert time.monotonic() < deadline
            continue
        break
    answer = json.loads(bytes(frame.payload))
    assert frame.kind == wire.ERROR
    assert answer["atoll"] == "Cancelled"


def test_code_sees_that_its_deadline_has_passed(shared: Caller) -> None:
    assert shared.call("until_cancelled", timeout=0.01) == "told"
    shared.send({"function": "until_cancelled"})  # the deadline was of that call only
    shared.cancel(force=False)
    assert shared.answer() == (wire.RESULT, "told")


def test_a_start_imports_little(tmp_path: Path) -> None:
    """Each of these takes milliseconds, and is there once it is needed; what reads JSON, already before that."""
    pytest.importorskip("msgspec")
    path = tmp_path / "light.py"
    path.write_text(
        "import sys\nFIRST = list(sys.modules)\nfrom atoll_worker import expose\n\n"
        "@expose\ndef first():\n    return FIRST\n\n@expose\ndef fail():\n    raise ValueError('no')\n"
    )
    caller = Caller(path)
    try:
        maps = Path(f"/proc/{caller.report['pid']}/maps")
        until(lambda: "msgspec" in maps.read_text(), PATIENCE, "the library of a worker that is idle")
        heavy = {"json", "_pickle", "functools", "collections", "typing", "enum", "re", "threading", "logging"}
        added_by_site = set(isolated_modules())
        assert not (heavy | {"atoll_worker.values", "msgspec"}) - added_by_site & set(caller.call("first"))
        assert caller.error({"function": "fail"})["type"] == "ValueError"
    finally:
        caller.close()


def isolated_modules() -> list[str]:
    """What this interpreter has imported before any code runs."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_service_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise ValueError('not today')\n")
    caller = Caller(path)
    assert not caller.is_ready
    assert caller.report["phase"] == "start"
    assert caller.report["error"]["type"] == "ValueError"
    assert "not today" in caller.report["text"]
    caller.close()
