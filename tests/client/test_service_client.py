# SPDX-License-Identifier: Apache-2.0
"""``ServiceClient`` and ``ServicePool``: one object in, one answer out."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import atoll
from atoll import ServiceClient, ServicePool
from atoll.environments.interpreters import survey
from conditions import WITHIN, children_of, is_gone, state_of, until, until_gone

Write = Callable[[str, str], Path]

ECHO = """
    import os
    from atoll_worker import ServiceBase

    class Echo(ServiceBase):
        calls = 0

        def validate_input(self, params):
            if params.get("bad"):
                raise ValueError("bad input")

        def process(self, params):
            self.calls += 1
            if "raise" in params:
                raise LookupError(params["raise"])
            if "exit" in params:
                os._exit(params["exit"])
            if "wait" in params:
                open(params["wait"]).close()  # a FIFO: until somebody opens its other end
            return {"got": params, "pid": os.getpid(), "calls": self.calls}

    if __name__ == "__main__":
        Echo().run()
"""

ITEMS = """
    from atoll_worker import ServiceBase

    class Items(ServiceBase):
        def process(self, params):
            try:
                for number in range(params["n"]):
                    if number == params.get("fail_at"):
                        raise LookupError("no more")
                    yield {"number": number}
            finally:
                if "mark" in params:
                    open(params["mark"], "w").close()
"""


@pytest.fixture
def echo(write: Write) -> Path:
    """The file of a service."""
    return write("services/echo.py", ECHO)


@pytest.fixture
def items(write: Write) -> Path:
    """The file of a service whose function is a generator."""
    return write("services/items.py", ITEMS)


def waits_in_call(client: ServiceClient) -> bool:
    return client.status().in_flight > 0


# -- calls ---------------------------------------------------------------------------------------------------------


def test_a_worker_stays_for_the_calls_after_it(echo: Path) -> None:
    with ServiceClient(echo) as client:
        first = client.call({"a": 1})
        second = client.call()
    assert (first["got"], second["got"]) == ({"a": 1}, {})
    assert first["pid"] == second["pid"] != os.getpid()
    assert second["calls"] == 2
    assert first["success"] is True
    assert 0 <= first["_meta"]["duration_seconds"] < 20
    assert first["_meta"]["timestamp"].endswith("+00:00")


def test_clients_of_the_same_file_share_it(echo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(echo.parent.parent)
    first, second, own = ServiceClient(echo), ServiceClient("services/echo.py"), ServiceClient(echo, max_queue=5)
    pids = [one.call()["pid"] for one in (first, second, own)]
    assert pids[0] == pids[1] != pids[2]
    first.close()
    assert second.call()["pid"] == pids[0]
    with pytest.raises(atoll.ServiceClosed):
        first.call()
    second.close()
    until_gone(pids[0])
    assert own.call()["pid"] == pids[2]
    own.close()
    own.close()


def test_a_client_that_is_forgotten_leaves_the_worker_to_the_next(echo: Path) -> None:
    def call() -> int:
        return int(ServiceClient(echo).call()["pid"])

    assert call() == call()


def test_a_source_means_the_same_wherever_the_process_goes(
    echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(echo.parent)
    sources = ["echo.py", "echo.py:Echo", "../services/echo.py"]
    clients = [ServiceClient(one, warm=False) for one in sources] + [ServiceClient(one) for one in sources]
    monkeypatch.chdir(tmp_path)
    for client in clients:
        assert client.call()["success"]
        client.close()


def test_cold_is_a_process_for_every_call(echo: Path) -> None:
    with ServiceClient(echo, warm=False) as client:
        answers = [client.call({"number": number}) for number in range(2)]
        assert all(is_gone(one["pid"]) for one in answers)
        assert [one["got"] for one in answers] == [{"number": 0}, {"number": 1}]
        assert [one["calls"] for one in answers] == [1, 1]
        assert client.pid is None
        for refused in (client.submit, client.status):
            with pytest.raises(atoll.AtollError, match="warm=False"):
                refused()
    with pytest.raises(atoll.ServiceClosed):
        client.call()


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_the_service_raises(echo: Path, warm: bool) -> None:
    with ServiceClient(echo, warm=warm) as client:
        for params, kind, context, says in (
            ({"bad": True}, "ValueError", "Validation error", "bad input"),
            ({"raise": "nothing there"}, "LookupError", "Unexpected error", "nothing there"),
        ):
            with pytest.raises(ValueError, match=says) as caught:
                client.call(params)
            error = caught.value
            assert isinstance(error, atoll.ServiceFailed)
            assert isinstance(error, atoll.AtollError)
            assert str(error) == f"echo: {kind}: {says}"
            assert (error.service, error.error_type, error.context) == ("echo", kind, context)
            assert "echo.py" in error.traceback.splitlines()[1]
            assert isinstance(error.__cause__, atoll.RemoteError)
            copy = pickle.loads(pickle.dumps(error))
            assert (str(copy), copy.answer) == (str(error), error.answer)

            answer = client.call(params, check_success=False)
            assert answer["success"] is False
            assert (answer["error"], answer["error_type"], answer["context"]) == (says, kind, context)
            assert set(answer) == {"success", "error", "error_type", "context", "traceback", "_meta"}


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_the_service_crashes(echo: Path, warm: bool) -> None:
    with ServiceClient(echo, warm=warm) as client:
        with pytest.raises(RuntimeError, match="exited with code 7 during call") as caught:
            client.call({"exit": 7})
        assert isinstance(caught.value, atoll.ServiceCrashed)
        assert isinstance(caught.value, atoll.WorkerError)
        assert isinstance(caught.value.__cause__, atoll.WorkerDied)
        with pytest.raises(RuntimeError):
            client.call({"exit": 0}, check_success=False)
        assert client.call({"a": 1})["got"] == {"a": 1}, "another worker answers"


def test_the_service_cannot_start(write: Write) -> None:
    file = write("broken.py", "import no_such_module_anywhere")
    with ServiceClient(file) as client:
        for call in (client.call, client.start, lambda: list(client.call_stream())):
            with pytest.raises(RuntimeError, match="no_such_module_anywhere") as caught:
                call()
            assert isinstance(caught.value, atoll.ServiceCrashed)
            assert isinstance(caught.value.__cause__, atoll.WorkerStartError | atoll.CircuitOpen)


def test_the_service_says_itself_that_it_failed(write: Write) -> None:
    text = """
        from atoll_worker import ServiceBase
        class Login(ServiceBase):
            def process(self, params):
                return {"success": False, "error": "no such user"}
    """
    with ServiceClient(write("login.py", text)) as client:
        with pytest.raises(atoll.ServiceFailed, match=r"^login: no such user$") as caught:
            client.call()
        assert (caught.value.error_type, caught.value.context, caught.value.__cause__) == ("", "", None)
        assert client.call(check_success=False)["error"] == "no such user"


def test_too_late(echo: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with ServiceClient(echo) as client:
        client.start()
        with pytest.raises(TimeoutError) as caught:
            client.call({"wait": str(gate)}, timeout=0.05)
        assert isinstance(caught.value, atoll.CallTimeout)
        assert client.call(timeout=None)["success"]
    with ServiceClient(echo, timeout=0.05, name="hasty") as client:
        client.start()
        with pytest.raises(atoll.CallTimeout, match=r"hasty\.process did not answer within 0\.05 seconds"):
            client.call({"wait": str(gate)})


def test_values_cross_as_they_do_everywhere(write: Write) -> None:
    text = """
        from atoll_worker import ServiceBase
        class Same(ServiceBase):
            def process(self, params):
                return params
    """
    with ServiceClient(write("same.py", text)) as client:
        answer = client.call({"data": b"\0\xff", "pair": (1, 2), "keys": {1: {2, 3}}})
        assert (answer["data"], answer["pair"], answer["keys"]) == (b"\0\xff", (1, 2), {1: {2, 3}})
        for params in (OrderedDict(a=1), defaultdict(int, a=1), MappingProxyType({"a": 1})):
            assert client.call(params)["a"] == 1
        with pytest.raises(atoll.EncodeError):
            client.call({"lock": threading.Lock()})
    with ServiceClient(write("list.py", text.replace("return params", "return [1, 2]"))) as client:
        assert client.call()["result"] == [1, 2]


def test_what_is_wrong_is_said(echo: Path, write: Write) -> None:
    with pytest.raises(atoll.ManifestError, match="there is no such file"):
        ServiceClient("services/nowhere.py")
    with pytest.raises(atoll.ManifestError, match=r"option wokers of .*did you mean workers"):
        ServiceClient(echo, wokers=2)
    with pytest.raises(atoll.ManifestError, match="give one of the two"):
        ServiceClient(echo, sys.executable, environment=sys.prefix)
    for python in ("", "python0.9", "/nowhere/bin/python", str(echo)):
        with pytest.raises(atoll.ManifestError, match=f"option python_executable: found '{python}', expected the path"):
            ServiceClient(echo, python)
    with pytest.raises(atoll.ManifestError, match="always warm"):
        ServicePool(echo, warm=False)
    with ServiceClient(echo) as client:
        for wrong in ([1], "text", 5):
            with pytest.raises(TypeError, match=r"params: found .* expected an object"):
                client.call(wrong)  # type: ignore[arg-type]
        with pytest.raises(atoll.ManifestError, match="timeout"):
            client.call(timeout=-1)
    other = write("other.py", "from atoll_worker import expose\n@expose\ndef process(params):\n    return params\n")
    with ServiceClient(other) as client, pytest.raises(atoll.ManifestError, match="not that of a ServiceBase"):
        client.call()
    nothing = write("nothing.py", "from atoll_worker import expose\n@expose\ndef other(params):\n    return params\n")
    with ServiceClient(nothing) as client, pytest.raises(atoll.FunctionNotFound, match="it exposes: other"):
        client.call()


def test_another_interpreter(write: Write) -> None:
    oldest = min((one.interpreter for one in survey() if one.interpreter and not one.refusal), key=lambda i: i.version)
    text = """
        import sys
        from atoll_worker import ServiceBase
        class Version(ServiceBase):
            def process(self, params):
                return {"version": sys.version_info[:2], "path": sys.path}
    """
    file = write("version.py", text)
    with ServiceClient(file, oldest.path) as client:
        assert client.call()["version"] == oldest.version[:2]
    with ServiceClient(file, python_executable=sys.executable) as client, ServiceClient(file) as default:
        assert client.call()["version"] == sys.version_info[:2]
        default.call()
        assert client.pid == default.pid, "that is what there is without saying so"


# -- asyncio and streams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_from_asyncio(echo: Path, items: Path, warm: bool, run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        with ServiceClient(echo, warm=warm) as client, ServiceClient(items, warm=warm) as stream:
            answers = await asyncio.gather(*(client.call_async({"number": number}) for number in range(3)))
            assert [one["got"]["number"] for one in answers] == [0, 1, 2]
            with pytest.raises(atoll.ServiceFailed, match="bad input"):
                await client.call_async({"bad": True})
            assert (await client.call_async({"bad": True}, check_success=False))["context"] == "Validation error"
            with pytest.raises(atoll.ServiceCrashed):
                await client.call_async({"exit": 1})
            assert [item async for item in stream.call_stream_async({"n": 3})] == [{"number": n} for n in range(3)]
            assert (await stream.call_async({"n": 2}))["result"] == [{"number": 0}, {"number": 1}]
            with pytest.raises(atoll.ServiceFailed, match="no more"):
                async for _ in stream.call_stream_async({"n": 3, "fail_at": 1}):
                    pass

    run(main())


@pytest.mark.usefixtures("unhurried")
def test_cancelling_a_task_ends_the_call(echo: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    async def main() -> None:
        with ServiceClient(echo) as client:
            pid = (await client.call_async())["pid"]
            task = asyncio.create_task(client.call_async({"wait": str(gate)}))
            while not waits_in_call(client):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.call_async())["pid"] == pid, "the same worker goes on"

    asyncio.run(main())


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_streams(items: Path, echo: Path, tmp_path: Path, warm: bool) -> None:
    with ServiceClient(items, warm=warm) as client:
        assert list(client.call_stream({"n": 3})) == [{"number": 0}, {"number": 1}, {"number": 2}]
        assert client.call({"n": 2})["result"] == [{"number": 0}, {"number": 1}]
        got = []
        stream = client.call_stream({"n": 3, "fail_at": 2})
        got += [next(stream), next(stream)]
        with pytest.raises(ValueError, match="LookupError: no more"):
            next(stream)
        assert got == [{"number": 0}, {"number": 1}]

        mark = tmp_path / f"mark-{warm}"
        stream = client.call_stream({"n": 1_000_000_000, "mark": str(mark)})
        assert next(stream) == {"number": 0}
        stream.close()  # type: ignore[attr-defined]
        assert mark.exists(), "its finally ran"
    with ServiceClient(echo, warm=warm) as client:
        assert [one["got"] for one in client.call_stream({"a": 1})] == [{"a": 1}]


# -- many at once --------------------------------------------------------------------------------------------------


def test_a_pool_makes_several_calls_at_once(echo: Path, tmp_path: Path) -> None:
    gates = [tmp_path / f"gate-{number}" for number in range(2)]
    for gate in gates:
        os.mkfifo(gate)
    with ServicePool(echo, workers=2) as pool:
        calls = [pool.submit({"wait": str(gate)}) for gate in gates]
        until(lambda: pool.status().in_flight == 2)
        for gate in gates:
            gate.open("w").close()
        assert len({call.result(20)["pid"] for call in calls}) == 2
        answers = list(pool.map({"number": number} for number in range(20)))
        assert [one["got"]["number"] for one in answers] == list(range(20))
        with ThreadPoolExecutor(4) as threads:
            assert len(list(threads.map(pool.call, [{"number": number} for number in range(20)]))) == 20
        pool.scale(1, 1)
        until(lambda: len(pool.status().workers) == 1)
        assert pool.call()["success"]


def test_the_first_error_ends_a_map(echo: Path) -> None:
    taken = []

    def params() -> Any:
        for number in range(1000):
            taken.append(number)
            yield {"raise": "three"} if number == 3 else {"number": number}

    with ServicePool(echo, workers=2) as pool:
        got = []
        with pytest.raises(atoll.ServiceFailed, match="three"):
            got.extend(one["got"]["number"] for one in pool.map(params()))
        assert len(taken) < 20
        tolerant = list(pool.map([{"raise": "one"}, {"a": 1}], check_success=False))
        assert [one["success"] for one in tolerant] == [False, True]


@pytest.mark.usefixtures("unhurried")
def test_a_submitted_call_is_cancelled(echo: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with ServicePool(echo, workers=1) as pool:
        pid = pool.call()["pid"]
        running, waiting = pool.submit({"wait": str(gate)}), pool.submit()
        until(lambda: pool.status().in_flight == 1)
        assert waiting.cancel()
        assert running.cancel()
        for call in (running, waiting):
            with pytest.raises(atoll.CallCancelled):
                call.result(20)
        assert pool.call()["pid"] == pid


def test_a_submitted_generator_is_cancelled_between_its_items(items: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with ServicePool(items, workers=1) as pool:
        call = pool.submit({"n": 1_000_000_000, "mark": str(mark)})
        until(call.running)
        until(lambda: pool.status().latency.calls > 0)  # it has begun to take items
        assert call.cancel()
        with pytest.raises(atoll.CallCancelled):
            call.result(20)
        until(mark.exists)
        assert pool.call({"n": 1})["result"] == [{"number": 0}]


# -- its life ------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_taken_up(write: Write) -> None:
    text = """
        from atoll_worker import ServiceBase
        class Number(ServiceBase):
            def process(self, params):
                return {"number": 1}
    """
    file = write("number.py", text)
    with ServiceClient(file) as client:
        assert client.call()["number"] == 1
        write("number.py", text.replace('"number": 1', '"number": 22'))
        assert client.call()["number"] == 22
        assert asyncio.run(client.call_async())["number"] == 22
        write("number.py", text.replace('"number": 1', '"number": 333'))
        assert asyncio.run(client.call_async())["number"] == 333
        write("number.py", "def (")
        for _ in range(2):
            with pytest.raises(atoll.ServiceCrashed, match="SyntaxError"):
                client.call()
        write("number.py", text.replace('"number": 1', '"number": 4444'))
        assert client.call()["number"] == 4444
        file.unlink()
        assert client.call()["number"] == 4444, "a worker that runs needs no file"


def test_health(echo: Path, write: Write, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with ServicePool(echo, workers=2) as pool:
        found = pool.health(WITHIN)
        assert (found["status"], found["service"], found["workers"]) == ("healthy", "echo", 2)
        assert found["pid"] in {one.pid for one in pool.status().workers}
        call = pool.submit({"wait": str(gate)})
        until(lambda: waits_in_call(pool))
        found = pool.health(WITHIN)
        assert (found["status"], found["in_flight"], found["queue"]) == ("healthy", 1, 0)
        gate.open("w").close()
        call.result(20)
    with ServiceClient(write("broken.py", "import no_such_module_anywhere")) as client:
        found = client.health()
        assert found["status"] == "unhealthy"
        assert found["pid"] is None
        assert "no_such_module_anywhere" in found["error"]
    with ServiceClient(echo, warm=False) as client:
        assert client.health(WITHIN)["status"] == "healthy"
        assert children_of(os.getpid()) == []


def test_who_gives_no_sign_of_life_is_not_healthy(echo: Path) -> None:
    with ServiceClient(echo) as client:
        pid = client.call()["pid"]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: state_of(pid) == "T")
        try:
            found = client.health(timeout=0.1)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert found["status"] == "unhealthy"
        assert f"pid {pid}" in found["error"]
        assert client.health(WITHIN)["status"] == "healthy"


def test_discovery(write: Write, echo: Path, caplog: pytest.LogCaptureFixture) -> None:
    write("services/helper.py", "def process(params): ...")
    write("services/plain.py", "from atoll_worker import expose\n@expose\ndef other(): ...")
    write("services/_private.py", ECHO)
    write("services/notes.txt", "")
    write("services/broken.py", "def (")
    write("services/inner/service.yaml", "name: from-a-folder")
    write("services/inner/service.py", ITEMS)
    with caplog.at_level(logging.WARNING, "atoll.client"):
        found = ServiceClient.discover(echo.parent)
    assert sorted(found) == ["echo", "from-a-folder"]
    assert "broken.py is left out" in caplog.text
    assert all(client.pid is None for client in found.values())
    assert found["echo"].call({"a": 1})["got"] == {"a": 1}
    assert list(found["from-a-folder"].call_stream({"n": 1})) == [{"number": 0}]
    for client in found.values():
        client.close()
    write("services/inner/service.yaml", "name: echo")
    with pytest.raises(atoll.ManifestError, match="are both called 'echo'"):
        ServicePool.discover(echo.parent, workers=2)
    with pytest.raises(atoll.ManifestError, match="services cannot be looked for there"):
        ServiceClient.discover(echo.parent / "nowhere")


def test_a_process_that_was_forked_has_a_worker_of_its_own(echo: Path, tmp_path: Path) -> None:
    with ServiceClient(echo) as client:
        pid = client.call()["pid"]
        report = tmp_path / "report"
        child = os.fork()
        if child == 0:
            try:
                report.write_text(str(client.call()["pid"]))
                client.close()
                atoll.shutdown()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert int(report.read_text()) != pid
        assert client.call()["pid"] == pid


def test_it_cannot_be_copied(echo: Path) -> None:
    with ServiceClient(echo) as client, pytest.raises(TypeError, match="can be neither pickled nor copied"):
        pickle.dumps(client)
