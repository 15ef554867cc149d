# SPDX-License-Identifier: Apache-2.0
"""Where programs run: forked, under web servers, test runners, event loops and at a terminal."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import atoll
from client.gates import Callers
from client.rungs import UNHURRIED
from conditions import WITHIN, children_of, end, is_gone, run_python, start_python, until, until_gone

Write = Callable[[str, str], Path]


# -- forking -------------------------------------------------------------------------------------------------------

FORKING = """\
import logging, os, sys, threading, time
import atoll

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(process)d %(name)s %(message)s")

@atoll.function(workers=2)
def whoami():
    import os
    return os.getpid()

@atoll.function
def double(number):
    return 2 * number

whoami.start()
double.start()
mine = {whoami() for _ in range(20)} | {worker.pid for worker in whoami.status().workers}
stop = False
wrong = []

def call():
    while not stop:
        try:
            if double(4) != 8:
                wrong.append("answer")
        except BaseException as error:
            wrong.append(repr(error))

threads = [threading.Thread(target=call) for _ in range(4)]
for thread in threads:
    thread.start()

for _ in range(5):
    pid = os.fork()
    if not pid:
        try:
            # A pool of its own: no worker of the parent's, nothing counted yet.
            assert whoami.pid is None
            assert whoami.status().workers == () and whoami.status().latency.calls == 0
            assert double(5) == 10
            theirs = whoami()
            assert theirs not in mine, "a worker of the parent's answered"
            assert list(double.map(range(100))) == list(range(0, 200, 2))
            assert double.submit(3).result(30) == 6
            atoll.shutdown()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status

stop = True
for thread in threads:
    thread.join()
assert not wrong, wrong[:3]
assert {whoami() for _ in range(20)} <= mine
assert whoami.status().restarts == 0
print("fine", os.getpid())
"""


def test_a_child_of_a_host_with_a_running_pool_finds_a_clean_one_and_says_so(write: Write) -> None:
    """Also if other threads of the parent are calling at that moment; the parent is not disturbed."""
    done = run_python(write("forking.py", FORKING), timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    parent = lines[-1].removeprefix("fine ")
    assert parent.isdigit(), lines[-5:]
    said = [line for line in lines if "this process was forked" in line]
    assert len(said) == 10  # two services, five children
    assert not any(line.startswith(f"{parent} ") for line in said)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing(write: Write, method: str) -> None:
    file = write(
        "program.py",
        """\
        import multiprocessing, os, sys
        import atoll

        @atoll.function
        def whoami():
            import os
            return os.getpid()

        def in_child(number):
            return number, whoami(), os.getpid()

        if __name__ == "__main__":
            mine = whoami()
            with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
                results = pool.map(in_child, range(20), chunksize=1)
                pool.close()
                pool.join()
            assert [number for number, _, _ in results] == list(range(20))
            pairs = {(worker, child) for _, worker, child in results}
            assert len(pairs) == len({child for _, child in pairs}) == len({worker for worker, _ in pairs}), pairs
            assert mine not in {worker for worker, _ in pairs}
            assert whoami() == mine
            print(*{worker for worker, _ in pairs}, mine)
        """,
    )
    done = run_python(file, method, timeout=100)
    assert done.returncode == 0, done.stderr
    until_gone(*map(int, done.stdout.split()))


# -- web servers ---------------------------------------------------------------------------------------------------

WSGI = """\
import os
import atoll

@atoll.function(timeout=30)
def whoami():
    import os
    return os.getpid()

whoami.start()  # before the server forks its workers
FIRST = whoami()

def app(environ, start_response):
    body = f"{os.getpid()} {whoami()} {FIRST}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""

ASGI = """\
import os
import atoll

@atoll.function(timeout=30)
def whoami():
    import os
    return os.getpid()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = f"{os.getpid()} {await whoami.aio()} 0".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})
"""


def port_said_in(log: Path) -> int:
    """Where a server listens that chose a port itself: one that another looks up may be gone until it is taken."""
    found = until(lambda: re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()), 60, "the server's port")
    return int(found[1])


def answer_of(port: int) -> tuple[int, int, int] | None:
    """Server process, atoll's worker, and the one from before the fork; None while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            one, two, three = map(int, answer.read().split())
            return one, two, three
    except (OSError, ValueError, http.client.HTTPException):
        return None


def asked_until_both_answered(port: int) -> set[tuple[int, int, int]]:
    found: set[tuple[int, int, int]] = set()

    def both() -> bool:
        answer = answer_of(port)
        if answer is not None:
            found.add(answer)
        return len({server for server, _, _ in found}) >= 2

    until(both, within=60)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_gunicorn_that_loads_the_program_before_it_forks(write: Write, tmp_path: Path, worker_class: str) -> None:
    pytest.importorskip("gunicorn")
    write("wsgi.py", WSGI)
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--worker-class", worker_class]
    command += ["--bind", "127.0.0.1:0", "--threads", "1" if worker_class == "sync" else "2", "wsgi:app"]
    command += ["--no-control-socket"] if has_control_socket() else []
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, text=True)
    try:
        found = asked_until_both_answered(port_said_in(tmp_path / "log"))
        workers = {server_pid: worker for server_pid, worker, _ in found}
        assert len(set(workers.values())) == len(workers)
        first = {first for _, _, first in found}
        assert len(first) == 1
        assert not first & set(workers.values())
        server.send_signal(signal.SIGTERM)
        assert server.wait(WITHIN) == 0, (tmp_path / "log").read_text()
        until_gone(*workers, *workers.values(), *first)
    finally:
        end(server)
        log.close()


def has_control_socket() -> bool:
    """Versions from 25 on listen for commands too, below the user's home."""
    from gunicorn.config import KNOWN_SETTINGS

    return any("--no-control-socket" in (setting.cli or ()) for setting in KNOWN_SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_uvicorn_with_two_workers(write: Write, tmp_path: Path, loop: str) -> None:
    pytest.importorskip("uvicorn")
    write("asgi.py", ASGI)
    command = [sys.executable, "-m", "uvicorn", "--workers", "2", "--host", "127.0.0.1", "--port", "0"]
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen([*command, "--loop", loop, "asgi:app"], cwd=tmp_path, stdout=log, stderr=log, text=True)
    try:
        found = asked_until_both_answered(port_said_in(tmp_path / "log"))
        workers = {server_pid: worker for server_pid, worker, _ in found}
        assert len(set(workers.values())) == len(workers)
        server.send_signal(signal.SIGTERM)
        server.wait(WITHIN)
        until_gone(*workers, *workers.values())
    finally:
        end(server)
        log.close()


# -- test runners --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_project_under_pytest_xdist(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    write("project/pytest.ini", "[pytest]\n")
    write(
        "project/test_it.py",
        """\
        import os
        import atoll
        import pytest

        @atoll.function
        def whoami():
            import os
            return os.getpid()

        @pytest.fixture(scope="session")
        def service(tmp_path_factory):
            file = tmp_path_factory.mktemp("service") / "adding.py"
            file.write_text("from atoll_worker import expose\\n@expose\\ndef add(a, b):\\n    return a + b\\n")
            with atoll.Service(file, workers=2) as service:
                yield service

        @pytest.mark.parametrize("number", range(20))
        def test_adding(service, number):
            assert service.add(number, 1) == number + 1
            assert list(service.add.map(range(10), range(10))) == list(range(0, 20, 2))
            with open(os.environ["NOTES"], "a") as notes:
                notes.write(f"{os.getpid()} {whoami()} {service.pid}\\n")
        """,
    )
    notes = tmp_path / "notes"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"],
        cwd=tmp_path / "project",
        env={**environ, "NOTES": str(notes)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 passed" in done.stdout
    lines = {tuple(map(int, line.split())) for line in notes.read_text().splitlines()}
    assert len({runner for runner, _, _ in lines}) == len(lines) == 2  # one worker each, and their own
    until_gone(*(pid for line in lines for pid in line))


# -- event loops ---------------------------------------------------------------------------------------------------


def test_uvloop() -> None:
    """Calls, a stream, a timeout and a cancelled task, side by side with plain threads."""
    uvloop = pytest.importorskip("uvloop")

    @atoll.function
    def double(number: int) -> int:
        return 2 * number

    @atoll.function
    def count(number: int) -> Iterator[int]:
        yield from range(number)

    @atoll.function
    def sleep(seconds: float) -> None:
        import time

        time.sleep(seconds)

    async def main() -> None:
        assert await asyncio.gather(*(double.aio(number) for number in range(200))) == list(range(0, 400, 2))
        assert [number async for number in count.aio(1000)] == list(range(1000))
        with pytest.raises(atoll.CallTimeout):
            await sleep.options(timeout=0.1).aio(30)
        task = asyncio.ensure_future(sleep.aio(30))
        while not sleep.status().in_flight:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await double.aio(4) == 8

    with Callers(2, lambda: double(3)) as callers:
        until(lambda: callers.results)
        uvloop.run(main())
    assert set(callers.results) == {6}
    assert not callers.errors


# -- a terminal ----------------------------------------------------------------------------------------------------

AT_A_TERMINAL = """\
import os, sys, time
import atoll

@atoll.function(workers=2)
def hold(path, stubborn):
    import os, time
    words = f"{os.getpid()}\\n"

    def rest():
        nonlocal words
        while True:
            try:
                with open(path, "a") as file:
                    file.write(words)
                time.sleep(60)
            except BaseException:
                if not stubborn:
                    raise
                words = "told\\n"

    while True:
        try:
            rest()
        except BaseException:  # it is told twice, the second time perhaps between two rounds
            if not stubborn:
                raise
            words = "told\\n"

UNHURRIED  # time alone never ends it

hold.start()
print("workers", *(worker.pid for worker in hold.status().workers), flush=True)
try:
    hold(sys.argv[1], len(sys.argv) > 2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
else:
    print("not interrupted", flush=True)
print("calls again", end=" ", flush=True)
try:
    hold.options(timeout=0.5)(sys.argv[1], False)
except atoll.CallTimeout:
    print("fine", flush=True)
"""


class Terminal:
    """A program at a terminal of its own: it and its children are the foreground process group."""

    def __init__(self, *command: str) -> None:
        self.text = ""
        pid, fd = pty.fork()
        if not pid:
            os.execv(command[0], command)
        self.pid = pid
        self._fd = fd
        self._reader = threading.Thread(target=self._read, name="terminal")
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 4096)
            except OSError:  # nobody holds the other end any more
                return
            if not data:
                return
            self.text += data.decode()

    def press_ctrl_c(self) -> None:
        os.write(self._fd, termios.tcgetattr(self._fd)[6][termios.VINTR])

    def wait(self) -> int:
        """For its end; what it exited with."""
        until(lambda: os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        if not is_gone(self.pid):
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self._reader.join(20)
        os.close(self._fd)


@pytest.fixture
def at_terminal(write: Write, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    started = []

    def start(*arguments: str) -> Terminal:
        file = write("program.py", AT_A_TERMINAL.replace("UNHURRIED", UNHURRIED))
        started.append(Terminal(sys.executable, str(file), *arguments))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


def workers_of(terminal: Terminal) -> list[int]:
    found = until(lambda: re.search(r"workers (\d+) (\d+)", terminal.text))
    return [int(found[1]), int(found[2])]


def test_ctrl_c_at_a_terminal(at_terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """The call is interrupted and its worker goes on: the signal is the host's alone. Then all ends in order."""
    path = tmp_path / "held"
    terminal = at_terminal(str(path))
    workers = workers_of(terminal)
    until(lambda: path.exists() and path.read_text())
    terminal.press_ctrl_c()
    until(lambda: "interrupted" in terminal.text)
    until(lambda: "fine" in terminal.text)
    assert terminal.wait() == 0
    assert "Traceback" not in terminal.text
    assert "was stopped" not in terminal.text
    assert set(map(int, path.read_text().split())) <= set(workers)  # nobody was replaced
    until_gone(*workers)


def test_a_second_ctrl_c_kills_what_does_not_end(at_terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    path = tmp_path / "held"
    terminal = at_terminal(str(path), "stubborn")
    workers = workers_of(terminal)
    until(lambda: path.exists() and path.read_text())
    holding = int(path.read_text())
    assert holding in workers
    terminal.press_ctrl_c()
    until(lambda: "told" in path.read_text())
    assert not is_gone(holding)
    terminal.press_ctrl_c()
    until_gone(holding)
    until(lambda: "interrupted" in terminal.text)
    until(lambda: "fine" in terminal.text)
    assert terminal.wait() == 0
    until_gone(*workers)


def test_ctrl_c_while_nobody_calls_leaves_the_workers(write: Write) -> None:
    """SIGINT to the whole group, as a terminal sends it: a host that ignores it finds its workers as before."""
    file = write(
        "program.py",
        """\
        import signal, sys
        import atoll

        @atoll.function
        def whoami():
            import os
            return os.getpid()

        caught = []
        signal.signal(signal.SIGINT, lambda *ignored: caught.append(1))
        first = whoami()
        print("ready", flush=True)
        sys.stdin.readline()
        print(first == whoami(), len(caught))
        """,
    )
    host = start_python(file, stdin=subprocess.PIPE, start_new_session=True)
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
        assert children_of(host.pid)
        os.killpg(host.pid, signal.SIGINT)
        out, _ = host.communicate("\n", timeout=30)
        assert out == "True 1\n"
    finally:
        end(host)


# -- a notebook ----------------------------------------------------------------------------------------------------

CELLS = [
    "import atoll",
    "@atoll.function(workers=2)\ndef square(number):\n    return number * number\nsquare.start()",
    "list(square.map(range(5)))",
    "await square.aio(3)",
    "square.status().state, len(square.status().workers)",
    "@atoll.function\ndef count(number):\n    yield from range(number)",
    "[one async for one in count.aio(4)], list(count(3))",
    "atoll.shutdown()",
]


@pytest.mark.slow
def test_a_notebook_maps_streams_and_shows_a_status(write: Write, tmp_path: Path) -> None:
    for module in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(module)
    file = write(
        "execute.py",
        """\
        import json, sys
        import nbclient, nbformat, traitlets.config

        cells = [nbformat.v4.new_code_cell(text) for text in json.loads(sys.argv[1])]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        # By sockets in the file system: ports that are free when they are chosen may be taken by others until then.
        config = traitlets.config.Config(KernelManager={"transport": "ipc"})
        nbclient.NotebookClient(notebook, timeout=60, startup_timeout=60, config=config).execute()
        print(json.dumps([cell.outputs for cell in notebook.cells]))
        """,
    )
    done = run_python(file, json.dumps(CELLS), timeout=120)
    assert done.returncode == 0, done.stderr
    results = [
        output["data"]["text/plain"]
        for outputs in json.loads(done.stdout)
        for output in outputs
        if output["output_type"] == "execute_result"
    ]
    assert results == ["[0, 1, 4, 9, 16]", "9", "('running', 2)", "([0, 1, 2, 3], [0, 1, 2])"]
