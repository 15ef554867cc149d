# SPDX-License-Identifier: Apache-2.0
"""``run_worker``, with real processes and real sockets, on the oldest Python and the newest: what a program that speaks
pyproc's wire can rely on."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.environments import find_interpreter
from atoll.errors import AtollError
from conditions import WITHIN, children_of, end, is_gone, until, until_gone
from pyproc_peer import Caller, Worker, folder_for_sockets, running

MAX_FRAME = 10 << 20
CODEC = "PYPROC_CODEC_TYPE"

PROGRAM = '''\
import asyncio
import os
import sys
import time
from pathlib import Path

from atoll_worker import Service, cancelled, expose, run_worker, traceparent


@expose
def add(req):
    return {"result": req["a"] + req["b"]}


@expose
def echo(req):
    return req


@expose
def size(req):
    return len(req["data"])


@expose
def fail(req):
    kind = {"ValueError": ValueError, "KeyError": KeyError, "SystemExit": SystemExit, "Own": Own}[req["kind"]]
    raise kind(*req.get("args", []))


class Own(Exception):
    pass


@expose
def nothing(req):
    pass


@expose
def make(req):
    return eval(req["text"])


@expose
async def later(req):
    await asyncio.sleep(req["seconds"])
    return {"slept": req["seconds"]}


@expose
async def afterwards(req):
    async def write():
        await asyncio.sleep(0.02)
        Path(req["path"]).touch()

    global kept
    kept = asyncio.create_task(write())


ticked = 0


@expose
async def tick(req):
    async def tick_on():
        global ticked
        while True:
            ticked += 1
            await asyncio.sleep(0.001)

    global kept
    kept = asyncio.create_task(tick_on())


@expose
def ticks(req):
    time.sleep(0.006)
    return ticked


@expose
def items(req):
    yield 1


@expose
def trace(req):
    return traceparent()


@expose(name="renamed")
def _helper(req):
    return "renamed"


class Counter(Service):
    def setup(self):
        self.count = 100

    @expose
    def count(self, req):
        self.count_now = getattr(self, "count_now", 100) + 1
        return self.count_now


def announce(req):
    Path(req["path"] + ".began").touch()


def conclude(req, how):
    try:
        Path(req["path"] + "." + how).touch()
    except BaseException:  # whoever asks again may do so here
        Path(req["path"] + "." + how).touch()


def hold(req, wait):
    try:
        announce(req)  # within: it may be interrupted as soon as it is said to have begun
        wait()
    except BaseException as error:
        conclude(req, type(error).__name__)
        raise
    conclude(req, "over")
    return "over"


@expose
def sleep(req):
    return hold(req, lambda: time.sleep(60))


@expose
def spin(req):
    def wait():
        until = time.monotonic() + 60
        while time.monotonic() < until:
            pass
    return hold(req, wait)


@expose
async def sleep_async(req):
    try:
        announce(req)
        await asyncio.sleep(60)
    except BaseException as error:
        conclude(req, type(error).__name__)
        raise


@expose
def stubborn(req):
    """Swallows what interrupts it, once."""
    try:
        hold(req, lambda: time.sleep(60))
    except BaseException:
        hold({"path": req["path"] + ".again"}, lambda: time.sleep(60))


@expose
def until_told(req):
    """Lasts until a file is there."""
    announce(req)
    while not os.path.exists(req["path"]):
        time.sleep(0.002)
    return {"done": True}


@expose
def fork(req):
    """A child that falls through to the worker's own code."""
    pid = os.fork()
    return {"pid": pid, "me": os.getpid()}


@expose
def fork_and_wait(req):
    pid = os.fork()
    if pid == 0:
        try:
            announce(req)
        finally:
            while True:
                time.sleep(60)
    return pid


@expose
def wait(req):
    return os.waitstatus_to_exitcode(os.waitpid(req["pid"], 0)[1])


@expose
def version(req):
    return list(sys.version_info[:2])


if __name__ == "__main__":
    run_worker()
'''


def interpreter(version: str) -> str:
    try:
        return str(find_interpreter(version).path)
    except AtollError as error:
        pytest.skip(f"needs Python {version}: {error}")


@pytest.fixture(params=["3.9", "3.13"])
def python(request: pytest.FixtureRequest) -> str:
    return interpreter(request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_for_sockets() as path:
        yield path


@pytest.fixture
def worker(python: str, folder: Path) -> Iterator[Worker]:
    with running(python, PROGRAM, folder) as one:
        yield one


@pytest.fixture
def caller(worker: Worker) -> Iterator[Caller]:
    with worker.caller() as one:
        yield one


def began(path: Path) -> None:
    until(Path(f"{path}.began").exists, what="the call to begin")


# -- calls ---------------------------------------------------------------------------------------------------------


def test_calls(caller: Caller, worker: Worker) -> None:
    assert caller.call("add", {"a": 2, "b": 3}) == {"result": 5}
    assert caller.call("nothing") is None
    assert caller.call("renamed") == "renamed"
    assert caller.call("count") == 101
    assert caller.call("count") == 102
    assert caller.call("later", {"seconds": 0.01}) == {"slept": 0.01}
    for body in (None, 0, "text", "日本語 🐚", [1, [2.5]], {"a": {"b": None}}, 2**64 - 1, -1.5e-9):
        assert caller.call("echo", body) == body
    assert caller.call("health") == {"status": "healthy", "pid": worker.pid}


def test_it_runs_on_the_python_it_was_started_with(caller: Caller, python: str) -> None:
    assert caller.call("version") == list(find_interpreter(python).version[:2])


def test_requests_plain_and_wrapped(caller: Caller) -> None:
    plain = {"id": 31, "method": "add", "body": {"a": 1, "b": 1}}
    good = {"id": 31, "ok": True, "body": {"result": 2}}
    for message in (plain, {"type": "request", "payload": plain}):
        caller.send(message)
        assert caller.reply() == good


def test_the_body_is_always_there_and_an_empty_object_where_none_came(caller: Caller) -> None:
    caller.send({"id": 1, "method": "nothing"})
    assert caller.reply() == {"id": 1, "ok": True, "body": None}
    caller.send({"id": 2, "method": "echo"})
    assert caller.reply() == {"id": 2, "ok": True, "body": {}}


def test_errors_are_of_one_call_and_name_their_class(caller: Caller, worker: Worker) -> None:
    assert caller.error("fail", {"kind": "ValueError", "args": ["too hot"]}) == "ValueError: too hot"
    assert caller.error("fail", {"kind": "Own", "args": ["mine"]}) == "Own: mine"
    assert caller.error("fail", {"kind": "ValueError"}) == "ValueError"
    assert caller.error("fail", {"kind": "KeyError", "args": ["k"]}) == "KeyError: 'k'"
    assert caller.error("fail", {"kind": "SystemExit", "args": [3]}) == "SystemExit: 3"
    assert caller.error("add", {"a": 1}) == "KeyError: 'b'"
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}
    until(lambda: "too hot" in worker.stderr(), what="the traceback on standard error")
    assert 'in fail\n    raise kind(*req.get("args", []))' in worker.stderr()
    assert "atoll_worker/faces" not in worker.stderr()


def test_an_unknown_method_is_said_with_those_there_are(caller: Caller) -> None:
    error = caller.error("ad")
    assert re.match(r"FunctionNotFound: method 'ad' not found; this worker has .*\badd\b.*\bhealth\b", error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("float('nan')", "result"),
        ("{'a': [1.0, float('inf')]}", "result['a'][1]"),
        ("object()", "result"),
        ("{1, 2}", "set"),
        ("b'bytes'", "bytes"),
        ("[print]", "result[0]"),
        ("(lambda a: a.append(a) or a)([])", "result"),
    ],
)
def test_what_json_cannot_carry_is_an_error_of_that_call(caller: Caller, text: str, words: str) -> None:
    error = caller.error("make", {"text": text})
    assert error.startswith("EncodeError: ")
    assert words in error
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}


def test_a_generator_is_refused_with_a_reason(caller: Caller) -> None:
    assert "no streams" in caller.error("items")


def test_half_a_pair_of_surrogates_goes_both_ways(caller: Caller) -> None:
    caller.send_raw(b'{"id":1,"method":"echo","body":"\\ud800"}')
    assert caller.reply() == {"id": 1, "ok": True, "body": "\ud800"}


def test_the_trace_of_the_caller(caller: Caller) -> None:
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert caller.call("trace", {}, headers={"traceparent": header}) == header
    assert caller.call("trace", {}) is None
    assert caller.call("trace", {}, headers={"traceparent": "no header"}) is None
    assert caller.call("trace", {}, headers={"traceparent": 5}) is None
    assert caller.call("trace", {}, headers={"other": "x"}) is None
    assert caller.call("trace", {}, headers=None) is None
    assert caller.call("trace", {}, headers="text") is None


def test_tasks_left_behind_go_on_between_calls(caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "written"
    caller.call("afterwards", {"path": str(path)})
    until(path.exists, what="the task to be over")
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}


def test_tasks_left_behind_go_on_however_many_calls_wait(caller: Caller) -> None:
    caller.call("tick")
    frame = json.dumps({"id": 1, "method": "ticks", "body": {}}).encode()
    caller.sock.sendall(50 * (len(frame).to_bytes(4, "big") + frame))  # read at once, and more than enough to do
    found = [caller.reply()["body"] for _ in range(50)]
    assert found[-1] - found[0] >= 25


def test_what_user_code_can_ask_of_its_call(caller: Caller) -> None:
    """There is no host: nobody to hear of progress, and nothing to call back."""
    assert caller.call("make", {"text": "__import__('atoll_worker').progress(1, 2)"}) is None
    assert caller.call("make", {"text": "__import__('atoll_worker').cancelled()"}) is False
    error = caller.error("make", {"text": "__import__('atoll_worker').host.models.get()"})
    assert error == "AtollError: this works in a worker only, and this process is none"


# -- frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_000, 65_530, 65_536, 100_000, 5_000_000, MAX_FRAME - 60])
def test_frames_up_to_ten_megabytes_both_ways(caller: Caller, size: int) -> None:
    body = {"data": "x" * size}
    assert caller.call("echo", body) == body


def test_a_request_too_large_is_refused_and_the_connection_goes_on(caller: Caller) -> None:
    text = json.dumps({"id": 77, "method": "size", "body": {"data": "x" * MAX_FRAME}}).encode()
    caller.send_raw(text)
    reply = caller.reply()
    assert reply["id"] == 77
    assert reply["ok"] is False
    assert re.match(r"Malformed: a frame of 10,485,\d+ bytes came, and 10,485,760 are the most", reply["error"])
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}


def test_a_result_too_large_is_an_error_of_that_call(caller: Caller) -> None:
    assert "10,485,760" in caller.error("make", {"text": "'x' * 11_000_000"})
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[]", b"3", b'{"id":9}', b"[" * 100_000])
def test_a_malformed_frame_is_one_error(caller: Caller, payload: bytes) -> None:
    caller.send_raw(payload)
    reply = caller.reply()
    assert reply["ok"] is False
    assert reply["error"].startswith("Malformed: ")
    assert reply["id"] == (9 if b"9" in payload else 0)
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}


def test_a_frame_may_come_byte_by_byte(caller: Caller) -> None:
    payload = json.dumps({"id": 1, "method": "add", "body": {"a": 1, "b": 1}}).encode()
    for byte in len(payload).to_bytes(4, "big") + payload:
        caller.sock.sendall(bytes([byte]))
    assert caller.reply()["body"] == {"result": 2}


def test_somebody_who_speaks_http_is_told_and_harms_nobody(worker: Worker, caller: Caller) -> None:
    with worker.caller() as other:
        other.sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")
        assert "1,195,725,856 bytes" in other.reply()["error"]
        assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}


# -- connections ---------------------------------------------------------------------------------------------------


def test_requests_sent_ahead_are_answered_in_order(caller: Caller) -> None:
    """More of them than the worker keeps waiting at a time."""
    count = 2_000
    for number in range(count):
        caller.request("echo", number)
    for number in range(count):
        assert caller.reply() == {"id": number + 1, "ok": True, "body": number}


def test_many_connections_at_once(worker: Worker) -> None:
    callers = [worker.caller() for _ in range(200)]
    try:
        for number, one in enumerate(callers):
            one.request("echo", number)
        for number, one in reversed(list(enumerate(callers))):
            assert one.reply()["body"] == number
    finally:
        for one in callers:
            one.close()


def test_many_may_connect_while_a_call_runs(worker: Worker, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "told"
    caller.request("until_told", {"path": str(path)})
    began(path)
    callers = [worker.caller() for _ in range(150)]
    try:
        for one in callers:
            one.request("add", {"a": 1, "b": 1})
        path.touch()
        assert caller.reply()["body"] == {"done": True}
        for one in callers:
            assert one.reply()["body"] == {"result": 2}
    finally:
        for one in callers:
            one.close()


def test_as_many_may_connect_as_the_kernel_admits_though_nobody_accepts(worker: Worker, caller: Caller) -> None:
    assert caller.call("echo", 1) == 1
    admitted = int(Path("/proc/sys/net/core/somaxconn").read_text())
    count = min(600, admitted)
    os.kill(worker.pid, signal.SIGSTOP)
    callers: list[Caller] = []
    try:
        for number in range(count):
            callers.append(worker.caller())
            callers[-1].request("echo", number)
        os.kill(worker.pid, signal.SIGCONT)
        assert [one.reply()["body"] for one in callers] == list(range(count))
    finally:
        os.kill(worker.pid, signal.SIGCONT)
        for one in callers:
            one.close()


def test_callers_at_the_same_time_get_their_own_replies(worker: Worker) -> None:
    wrong: list[Any] = []

    def call(number: int) -> None:
        try:
            with worker.caller() as one:
                for turn in range(200):
                    value = [number, turn, "x" * (turn * 37 % 3_000)]
                    if one.call("echo", value) != value:
                        wrong.append((number, turn))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_connecting_and_going_away_is_normal(worker: Worker, caller: Caller) -> None:
    assert caller.call("echo", 1) == 1
    before = _sockets(worker.pid)
    for _ in range(300):
        worker.caller().close()
    half = worker.caller()
    half.sock.sendall(b"\0\0")
    half.close()
    unread = worker.caller()
    unread.request("echo", "x" * 3_000_000)
    unread.close()
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}
    assert "Traceback" not in worker.stderr()
    until(lambda: _sockets(worker.pid) == before, what="the connections to be closed")


def _sockets(pid: int) -> int:
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
        except OSError:
            continue
    return found


def test_a_caller_who_sends_no_more_still_gets_what_he_asked_for(worker: Worker, tmp_path: Path) -> None:
    with worker.caller() as one:
        one.request("later", {"seconds": 0.1})  # longer than it takes to notice that nothing more comes
        one.request("echo", "x" * 2_000_000)
        one.request("add", {"a": 1, "b": 1})
        one.sock.shutdown(socket.SHUT_WR)
        assert [one.reply()["id"] for _ in range(3)] == [1, 2, 3]
        assert one.sock.recv(1) == b"", "then the worker closes"


def test_a_slow_reader_holds_up_nobody_and_no_memory(worker: Worker, caller: Caller) -> None:
    with worker.caller() as slow:
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for number in range(20):
            slow.request("make", {"text": "'x' * 5_000_000"})
            assert caller.call("echo", number) == number
        memory = _resident(worker.pid)
        for number in range(20):
            assert len(slow.reply()["body"]) == 5_000_000
            assert caller.call("echo", number) == number
        assert memory < 120_000_000, "a reply or two, not all twenty"


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_large_requests_sent_ahead_wait_with_their_sender(worker: Worker, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "told"
    sent: list[int] = []

    def send() -> None:
        for _ in range(20):
            sent.append(caller.request("size", {"data": "x" * 5_000_000}))

    caller.request("until_told", {"path": str(path)})
    began(path)
    sender = threading.Thread(target=send)
    sender.start()
    try:

        def is_still() -> bool:
            before = len(sent)
            threading.Event().wait(0.3)
            return len(sent) == before >= 2

        until(is_still, what="the sender to be held up")
        assert len(sent) <= 5
    finally:
        path.touch()
    assert caller.reply()["body"] == {"done": True}
    for _ in range(20):
        assert caller.reply()["body"] == 5_000_000
    sender.join()


def test_without_free_descriptors_those_who_are_there_are_served(python: str, folder: Path) -> None:
    program = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n" + PROGRAM
    with running(python, program, folder) as worker, worker.caller() as first:
        assert first.call("echo", 1) == 1
        callers = [worker.caller() for _ in range(60)]
        try:
            assert first.call("echo", 2) == 2
            until(lambda: "no connection can be accepted" in worker.stderr(), what="the lack to be said")
            for one in callers:
                one.request("echo", 3)
            for one in callers:
                assert one.reply()["body"] == 3
                one.close()
        finally:
            for one in callers:
                one.close()


FEW = """\
import resource
import sys

from atoll_worker import expose, run_worker

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))


@expose
def fail(req):
    assert "logging" not in sys.modules
    raise ValueError(req)


run_worker()
"""


def test_without_free_descriptors_there_is_none_to_import_by(python: str, folder: Path) -> None:
    """Neither that no more can be accepted, nor what a function raises, takes anything that was not imported before."""
    with running(python, FEW, folder) as worker, worker.caller() as first:
        callers = [worker.caller() for _ in range(60)]
        try:
            until(lambda: "no connection can be accepted" in worker.stderr(), what="the lack to be said")
            assert first.error("fail", 1).startswith("ValueError")
            assert "fail raised, called by request 1\n" in worker.stderr()
            for one in callers:
                one.request("health")
            for one in callers:
                assert one.reply()["ok"] is True
                one.close()
        finally:
            for one in callers:
                one.close()


# -- while a call runs ---------------------------------------------------------------------------------------------


def test_health_is_answered_while_a_call_runs(worker: Worker, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "told"
    caller.request("until_told", {"path": str(path)})
    began(path)
    with worker.caller() as other:
        assert other.call("health") == {"status": "healthy", "pid": worker.pid}
        other.request("add", {"a": 1, "b": 1})  # waits for its turn
        other.request("health")  # and this for that
        path.touch()
        assert caller.reply()["body"] == {"done": True}
        assert [other.reply()["id"] for _ in range(2)] == [2, 3]


def test_a_health_of_the_users_own_takes_the_place(python: str, folder: Path) -> None:
    program = PROGRAM.replace('name="renamed"', 'name="health"')
    with running(python, program, folder) as worker, worker.caller() as caller:
        assert caller.call("health") == "renamed"


@pytest.mark.parametrize("method", ["sleep", "spin", "sleep_async"])
@pytest.mark.parametrize("how", ["message", "hanging up"])
def test_cancelling_stops_the_call(worker: Worker, tmp_path: Path, method: str, how: str) -> None:
    path = tmp_path / "told"
    error = "CancelledError" if method == "sleep_async" else "Cancelled"
    with worker.caller() as caller:
        number = caller.request(method, {"path": str(path)})
        began(path)
        if how == "message":
            caller.cancel(number, "context deadline exceeded")
            reply = caller.reply()
            assert reply == {"id": number, "ok": False, "error": "Cancelled: context deadline exceeded"}
            assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}
        else:
            caller.cancel(number)
            caller.close()
        until(Path(f"{path}.{error}").exists, what="the call to be interrupted")
    with worker.caller() as other:
        assert other.call("add", {"a": 1, "b": 2}) == {"result": 3}


def test_code_that_swallows_a_cancellation_is_asked_again(worker: Worker, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "told"
    number = caller.request("stubborn", {"path": str(path)})
    began(path)
    caller.cancel(number)
    assert caller.reply()["error"].startswith("Cancelled: ")
    assert Path(f"{path}.Cancelled").exists()
    assert Path(f"{path}.again.Cancelled").exists()


def test_code_that_looks_may_return_by_itself(python: str, folder: Path, tmp_path: Path) -> None:
    program = PROGRAM.replace(
        "time.sleep(0.002)", "time.sleep(0.002)\n        if cancelled():\n            return {'stopped': True}"
    )
    # It gets the time for that also where it does not get the processor.
    program = "from atoll_worker.faces import pyproc_call\n\npyproc_call._GRACE *= 100\n" + program
    path = tmp_path / "never"
    with running(python, program, folder) as worker, worker.caller() as caller:
        number = caller.request("until_told", {"path": str(path)})
        began(path)
        caller.cancel(number)
        assert caller.reply() == {"id": number, "ok": True, "body": {"stopped": True}}


def test_a_request_that_waits_is_never_begun_when_it_is_cancelled(
    worker: Worker, caller: Caller, tmp_path: Path
) -> None:
    path = tmp_path / "told"
    caller.request("until_told", {"path": str(path)})
    began(path)
    with worker.caller() as other:
        first = other.request("until_told", {"path": str(tmp_path / "a")})
        second = other.request("add", {"a": 1, "b": 1})
        other.cancel(first, "timeout")
        other.cancel(second + 5)  # nobody's
        until(lambda: _is_read(other), what="the worker to read what was sent")
        path.touch()
        assert caller.reply()["body"] == {"done": True}
        assert other.reply() == {"id": first, "ok": False, "error": "Cancelled: timeout"}
        assert other.reply() == {"id": second, "ok": True, "body": {"result": 2}}
    assert not Path(f"{tmp_path / 'a'}.began").exists()


def _is_read(caller: Caller) -> bool:
    """Whether the worker has taken all that this caller sent."""
    import array
    import fcntl

    left = array.array("i", [0])
    fcntl.ioctl(caller.sock.fileno(), 0x5411, left)  # SIOCOUTQ
    return left[0] == 0


def test_cancelling_what_is_over_harms_nothing(caller: Caller) -> None:
    """A client's deadline passes in the moment in which the reply arrives."""
    for _ in range(300):
        number = caller.request("add", {"a": 1, "b": 1})
        caller.cancel(number)
        reply = caller.reply()
        assert reply["id"] == number
        assert reply["ok"] is True or reply["error"] == "Cancelled: context cancelled"
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}


def test_only_the_callers_own_requests_can_be_cancelled(worker: Worker, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "told"
    number = caller.request("until_told", {"path": str(path)})
    began(path)
    with worker.caller() as other:
        other.cancel(number)
        assert other.call("health")["status"] == "healthy", "the cancellation was read before this"
    path.touch()
    assert caller.reply()["body"] == {"done": True}


def test_children_of_user_code_end_by_signals_as_they_would_elsewhere(
    worker: Worker, caller: Caller, tmp_path: Path
) -> None:
    pid = caller.call("fork_and_wait", {"path": str(tmp_path / "child")})
    until(Path(f"{tmp_path / 'child'}.began").exists, what="the child to begin")
    os.kill(pid, signal.SIGTERM)
    assert caller.call("wait", {"pid": pid}) == -signal.SIGTERM
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}
    assert "Traceback" not in worker.stderr()


def test_hanging_up_reaches_a_caller_whose_connection_a_child_has_too(worker: Worker, caller: Caller) -> None:
    with worker.caller() as other:
        other.request("fork_and_wait", {"path": "/nowhere"})
        other.sock.shutdown(socket.SHUT_WR)
        pid = other.reply()["body"]
        assert other.sock.recv(1) == b""
    os.kill(pid, signal.SIGKILL)
    assert caller.call("wait", {"pid": pid}) == -signal.SIGKILL


def test_callers_see_the_end_of_a_worker_whose_children_live_on(
    python: str, folder: Path, worker: Worker, caller: Caller, tmp_path: Path
) -> None:
    """A child that user code forked has neither the callers' connections nor the socket that others connect to."""
    path = tmp_path / "child"
    with worker.caller() as idle:
        assert idle.call("echo", 1) == 1
        pid = caller.call("fork_and_wait", {"path": str(path)})
        until(Path(f"{path}.began").exists, what="the child to begin")
        try:
            assert caller.call("echo", 1) == 1
            caller.request("sleep", {"path": str(tmp_path / "call")})
            began(tmp_path / "call")
            os.kill(worker.pid, signal.SIGKILL)
            assert caller.sock.recv(1) == b""
            assert idle.sock.recv(1) == b""
            worker.process.wait(WITHIN)
            with running(python, PROGRAM, folder) as another, another.caller() as one:
                assert one.call("health")["pid"] == another.pid
            assert not is_gone(pid)
        finally:
            os.kill(pid, signal.SIGKILL)
    until_gone(pid)


def test_a_forked_child_that_falls_through_answers_nobody(worker: Worker, caller: Caller) -> None:
    reply = caller.call("fork")
    assert reply["pid"] != 0
    assert reply["me"] == worker.pid
    until(lambda: not children_of(worker.pid), what="the child to end")
    assert caller.call("add", {"a": 1, "b": 2}) == {"result": 3}
    assert Path(worker.path).exists()


# -- the worker's life ---------------------------------------------------------------------------------------------


def test_only_its_user_can_connect(worker: Worker) -> None:
    mode = os.stat(worker.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["idle", "connected", "sleep", "spin", "sleep_async", "waiting in line"])
def test_it_ends_when_it_is_told_to(worker: Worker, tmp_path: Path, number: int, state: str) -> None:
    path = tmp_path / "told"
    callers = [] if state == "idle" else [worker.caller(), worker.caller()]
    try:
        if state in ("sleep", "spin", "sleep_async", "waiting in line"):
            callers[0].request("sleep" if state == "waiting in line" else state, {"path": str(path)})
            began(path)
            if state == "waiting in line":
                callers[1].request("add", {"a": 1, "b": 1})
        elif callers:
            assert callers[0].call("echo", 1) == 1
        assert worker.stop(number) == 0
        assert not Path(worker.path).exists()
        assert "Traceback" not in worker.stderr()
    finally:
        for one in callers:
            one.close()


def test_it_ends_when_another_thread_gets_the_signal(python: str, folder: Path) -> None:
    """As when the signal reaches the main thread a moment before it goes to sleep: it sleeps on, and is to be woken."""
    program = PROGRAM.replace(
        "    run_worker()\n",
        "    import signal, threading\n    threading.Thread(target=signal.pause, daemon=True).start()\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n    run_worker()\n",
    )
    with running(python, program, folder) as worker, worker.caller() as caller:
        assert caller.call("later", {"seconds": 0.001}) == {"slept": 0.001}
        assert worker.stop(signal.SIGINT) == 0
        assert not Path(worker.path).exists()


STRUCK_LATE = """\
import sys

from atoll_worker import Cancelled, expose, run_worker


def strike(frame, event, argument):
    "Where the handler of a signal may run, too: at the entry of a function."
    if event == "call" and frame.f_code.co_name == "_come_back":
        sys.setprofile(None)
        raise Cancelled("late")


@expose
def fail(req):
    sys.setprofile(strike)
    raise ValueError(req)


@expose
def echo(req):
    return req


run_worker()
"""


def test_an_interruption_that_strikes_on_the_way_back_does_not_end_the_worker(python: str, folder: Path) -> None:
    with running(python, STRUCK_LATE, folder) as worker, worker.caller() as caller:
        assert "late" in caller.error("fail", 1)
        assert caller.call("echo", 1) == 1


def test_a_wakeup_descriptor_of_the_programs_own_is_left_alone(python: str, folder: Path) -> None:
    program = PROGRAM.replace(
        "    run_worker()\n",
        "    import signal, socket\n    one, two = socket.socketpair()\n    two.setblocking(False)\n"
        "    signal.set_wakeup_fd(two.fileno())\n    run_worker()\n"
        "    assert signal.set_wakeup_fd(-1) == two.fileno()\n    assert one.recv(1) == bytes([signal.SIGTERM])\n",
    )
    with running(python, program, folder) as worker, worker.caller() as caller:
        assert caller.call("echo", 1) == 1
        assert worker.stop(signal.SIGTERM) == 0, worker.stderr()


def test_code_that_swallows_the_signal_is_its_workers_last(worker: Worker, caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "told"
    caller.request("stubborn", {"path": str(path)})
    began(path)
    worker.process.send_signal(signal.SIGINT)
    began(Path(f"{path}.again"))
    assert worker.stop(signal.SIGINT) == 0


def test_what_a_killed_worker_left_is_no_problem_at_the_next_start(python: str, folder: Path) -> None:
    with running(python, PROGRAM, folder) as worker:
        assert worker.stop(signal.SIGKILL) == -signal.SIGKILL
        assert Path(worker.path).exists()
    with running(python, PROGRAM, folder) as worker, worker.caller() as caller:
        assert caller.call("health") == {"status": "healthy", "pid": worker.pid}


def test_a_worker_does_not_take_the_place_of_a_living_one(python: str, folder: Path) -> None:
    with running(python, PROGRAM, folder) as first:
        with running(python, PROGRAM, folder, ready=False) as second:
            assert second.process.wait(WITHIN) == 1
            until(lambda: "a worker listens here already" in first.stderr(), what="the reason")
        with first.caller() as caller:
            assert caller.call("health")["pid"] == first.pid


def test_a_worker_that_ends_leaves_the_socket_of_the_one_that_took_its_place(python: str, folder: Path) -> None:
    """A client that restarts a worker removes the socket, and starts the next while the first is ending."""
    with running(python, PROGRAM, folder) as first:
        os.unlink(first.path)
        with running(python, PROGRAM, folder) as second:
            assert first.stop(signal.SIGINT) == 0
            with second.caller() as caller:
                assert caller.call("health")["pid"] == second.pid


def test_what_is_no_socket_is_left_alone(python: str, folder: Path) -> None:
    (folder / "s").write_text("precious")
    with running(python, PROGRAM, folder, ready=False) as worker:
        assert worker.process.wait(WITHIN) == 1
        assert "no socket, so it is left alone" in worker.stderr()
    assert (folder / "s").read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "words"),
    [("missing/folder/s", "No such file or directory"), ("x" * 150, "too long"), ("", "PYPROC_SOCKET_PATH")],
    ids=["no folder", "too long", "none"],
)
def test_a_place_that_cannot_be_says_why(python: str, folder: Path, path: str, words: str) -> None:
    given = {"PYPROC_SOCKET_PATH": str(folder / path) if path else ""}
    with running(python, PROGRAM, folder, given, ready=False) as worker:
        assert worker.process.wait(WITHIN) == 1
        assert words in worker.stderr()


def test_what_the_worker_does_is_said_where_that_is_asked_for(python: str, folder: Path) -> None:
    with running(python, PROGRAM, folder, {"PYPROC_LOG_LEVEL": "debug"}) as worker, worker.caller() as caller:
        assert caller.call("echo", 1) == 1
        said = worker.stderr()
        assert f"DEBUG atoll_worker.pyproc: listening at {worker.path}, JSON by json, functions: add, " in said
        assert re.search(r"connection \d+ came\n", said)
        until(lambda: re.search(r"connection \d+ went\n", worker.stderr()))
    with running(python, PROGRAM, folder, {"PYPROC_LOG_LEVEL": "loud"}, name="t", ready=False) as worker:
        assert worker.process.wait(WITHIN) == 1
        assert "PYPROC_LOG_LEVEL is 'loud'; levels are debug" in worker.stderr()


def test_the_path_may_be_given_in_the_program(python: str, folder: Path) -> None:
    program = PROGRAM.replace("run_worker()\n", f"run_worker({str(folder / 't')!r})\n")
    environ = {"PYPROC_SOCKET_PATH": "/nowhere"}
    with running(python, program, folder, environ, name="t") as worker, worker.caller() as caller:
        assert caller.call("echo", 1) == 1


def test_a_program_that_exposes_nothing_has_its_health_and_says_so(python: str, folder: Path) -> None:
    with running(python, "from atoll_worker import run_worker\nrun_worker()\n", folder) as worker:
        with worker.caller() as caller:
            assert caller.call("health")["pid"] == worker.pid
        assert "nothing is exposed" in worker.stderr()


def test_functions_of_imported_modules_can_be_called_and_the_last_of_a_name_counts(python: str, folder: Path) -> None:
    (folder / "models.py").write_text(
        "from atoll_worker import expose\n\n\n@expose\ndef predict(req):\n    return 'imported'\n\n\n"
        "@expose\ndef only_here(req):\n    return __name__\n"
    )
    program = (
        "import models\nfrom atoll_worker import expose, run_worker\n\n\n@expose\ndef predict(req):\n"
        "    return 'own'\n\n\ndef made():\n    @expose\n    def inner(req):\n        return 'inner'\n\n\n"
        "made()\nrun_worker()\n"
    )
    with running(python, program, folder) as worker, worker.caller() as caller:
        assert caller.call("predict") == "own"
        assert caller.call("only_here") == "models"
        assert caller.call("inner") == "inner"


def test_not_on_another_thread(python: str, folder: Path) -> None:
    program = (
        "import threading\nfrom atoll_worker import run_worker\n"
        "thread = threading.Thread(target=run_worker)\nthread.start()\nthread.join()\n"
    )
    with running(python, program, folder, ready=False) as worker:
        assert worker.process.wait(WITHIN) == 0
        assert "run_worker() serves on the main thread" in worker.stderr()


@pytest.mark.parametrize(
    ("codec", "words"), [("msgpack", "there is no JSON codec 'msgpack'"), ("orjson", "No module named 'orjson'")]
)
def test_a_codec_that_is_not_there_is_said(python: str, folder: Path, codec: str, words: str) -> None:
    with running(python, PROGRAM, folder, {"PYPROC_CODEC_TYPE": codec}, ready=False) as worker:
        assert worker.process.wait(WITHIN) == 1
        assert words in worker.stderr()


@pytest.mark.parametrize(
    ("asked", "taken"), [(None, "msgspec"), ("auto", "msgspec"), ("orjson", "orjson"), ("json", "json")]
)
def test_a_codec_of_the_users_environment_is_taken(folder: Path, asked: str | None, taken: str) -> None:
    environ = {"PYPROC_LOG_LEVEL": "debug"} if asked is None else {"PYPROC_LOG_LEVEL": "debug", CODEC: asked}
    with running(sys.executable, PROGRAM, folder, environ) as worker, worker.caller() as caller:
        until(lambda: f"JSON by {taken}," in worker.stderr(), what="the codec to be said")  # after it listens
        for body in (None, "日本語 🐚", [1, [2.5]], {"a": {"b": None}}, 2**64 - 1, "x" * 200_000):
            assert caller.call("echo", body) == body
        for text in ("float('nan')", "{'a': [None, float('inf')]}", "object()"):
            assert caller.error("make", {"text": text}).startswith("EncodeError: result")
        for payload in (b"[" * 100_000, b"{", b"\xff", b'{"id":1,"method":"echo","body":NaN}'):
            caller.send_raw(payload)
            assert caller.reply()["error"].startswith("Malformed: the frame is not JSON")
        assert caller.call("later", {"seconds": 0.001}) == {"slept": 0.001}


def test_the_same_file_is_a_service_of_atoll(folder: Path) -> None:
    import atoll

    file = folder / "worker.py"
    file.write_text(PROGRAM)
    with atoll.Service(str(file)) as service:
        assert service.add({"a": 1, "b": 2}) == {"result": 3}


def test_the_worker_of_a_program_that_was_killed_ends_when_the_next_takes_its_place(python: str, folder: Path) -> None:
    program = "from atoll_worker.faces import pyproc_server\n\npyproc_server._LOOK_AROUND = 0.02\n" + PROGRAM
    (folder / "s_worker.py").write_text(program)
    starter = folder / "starter.py"
    starter.write_text(
        "import os, subprocess, sys\nprint(subprocess.Popen([sys.executable, 's_worker.py']).pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with running(python, program, folder) as first:
        path = first.path
        first.stop(signal.SIGINT)
    environ = {**os.environ, "PYTHONPATH": str(folder / "packages"), "PYPROC_SOCKET_PATH": path}
    parent = subprocess.Popen(
        [python, str(starter)], cwd=folder, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        until(Path(path).exists, what="the worker to listen")
        os.unlink(path)
        with running(python, PROGRAM, folder) as second, second.caller() as caller:
            threading.Event().wait(0.1)  # five looks, in which it is not forgotten: who started it lives
            assert not is_gone(orphan)
            end(parent)
            until_gone(orphan)
            assert caller.call("health")["pid"] == second.pid
    finally:
        end(parent)


def test_nothing_is_warned_of(python: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "told"
    # But of code that took long, which asyncio's debug mode says of what merely got no processor, too.
    program = PROGRAM.replace(
        "async def later(req):\n",
        "async def later(req):\n    asyncio.get_running_loop().slow_callback_duration = 1e9\n",
    )
    with running(python, program, folder, {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}) as worker:
        with worker.caller() as caller:
            assert caller.call("echo", "x" * 200_000) == "x" * 200_000
            assert caller.call("later", {"seconds": 0.001}) == {"slept": 0.001}
            assert caller.call("afterwards", {"path": str(path)}) is None
            assert caller.error("make", {"text": "float('nan')"})
            number = caller.request("sleep_async", {"path": str(path)})
            began(path)
            caller.cancel(number)
            assert caller.reply()["ok"] is False
        assert worker.stop(signal.SIGINT) == 0
        assert worker.stderr() == ""


def test_nothing_runs_where_nobody_calls(worker: Worker, caller: Caller) -> None:
    """An idle worker's threads are asleep for good, not for a while each: they are not switched to."""
    assert caller.call("echo", 1) == 1

    def switches() -> int:
        return sum(
            int(found)
            for task in Path(f"/proc/{worker.pid}/task").iterdir()
            for found in re.findall(r"voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text())
        )

    def is_still() -> bool:
        before = switches()
        threading.Event().wait(0.3)
        return switches() == before

    until(is_still, what="the worker to be still")


def test_a_worker_whose_caller_is_killed_goes_on(worker: Worker, folder: Path, python: str, tmp_path: Path) -> None:
    path = tmp_path / "told"
    pid = os.fork()
    if pid == 0:
        one = worker.caller()
        one.request("sleep", {"path": str(path)})
        signal.pause()
    try:
        began(path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    until(Path(f"{path}.Cancelled").exists, what="the call to be interrupted")
    with worker.caller() as other:
        assert other.call("add", {"a": 1, "b": 2}) == {"result": 3}
    assert not is_gone(worker.pid)
