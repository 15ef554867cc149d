# SPDX-License-Identifier: Apache-2.0
"""A worker that dies says how; a deadline that passes really stops all it started; the next call works."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool.worker import Worker
from client.rungs import UNHURRIED, ends_at, not_before
from conditions import WITHIN, end, is_gone, start_python, state_of, until, until_gone

Write = Callable[[str, str], Path]

SERVICE = """\
import ctypes, os, signal, sys, time
from atoll_worker import Service, expose

def die(how):
    print("one", file=sys.stderr)
    print("last words", file=sys.stderr, flush=True)
    if how == "exit":
        os._exit(7)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()

if os.environ.get("WHEN") == "start":
    die(os.environ["HOW"])

class Mortal(Service):
    def setup(self):
        if os.environ.get("WHEN") == "setup":
            die(os.environ["HOW"])

    @expose
    def die(self, how):
        die(how)

    @expose
    def whoami(self):
        return os.getpid()
"""

WAYS = {
    "exit": (7, None, "exited with code 7"),
    "kill": (None, signal.SIGKILL, "was killed by signal 9 (SIGKILL)"),
    "segfault": (None, signal.SIGSEGV, "was killed by signal 11 (SIGSEGV)"),
    "abort": (None, signal.SIGABRT, "was killed by signal 6 (SIGABRT)"),
}


def check(death: atoll.WorkerDied, how: str, phase: str) -> None:
    code, number, words = WAYS[how]
    assert (death.exit_code, death.signal, death.phase, death.service) == (code, number, phase, "mortal")
    assert f"the worker of service 'mortal' (pid {death.pid}) {words} during {phase}" in str(death)
    assert death.stderr[:2] == ("one", "last words")
    assert "    last words" in str(death)
    assert is_gone(death.pid)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("phase", ["start", "setup"])
def test_death_before_it_is_ready(write: Write, how: str, phase: str) -> None:
    file = write("mortal.py", SERVICE)
    service = atoll.Service(file, env_vars={"WHEN": phase, "HOW": how}, start_timeout=600)
    with pytest.raises(atoll.WorkerDied) as caught:
        service.start()
    check(caught.value, how, phase)
    assert service.pid is None


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("how", WAYS)
def test_death_in_a_call(write: Write, how: str) -> None:
    service = atoll.Service(write("mortal.py", SERVICE))
    first = service.whoami()
    with pytest.raises(atoll.WorkerDied) as caught:
        service.die(how)
    check(caught.value, how, "call")
    assert caught.value.pid == first
    second = service.whoami()
    assert second not in (first, os.getpid())
    assert is_gone(first)


def test_an_interpreter_that_is_none() -> None:
    for python in ("/bin/true", "/bin/cat"):
        with pytest.raises(atoll.AtollError) as caught:
            atoll.function(environment=python)(lambda: 1)()
        assert python in str(caught.value)


def test_ended_workers_leave_nothing_to_the_garbage_collector(write: Write) -> None:
    """Programs with many objects switch it off: descriptors and lanes must not add up in them."""

    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:atoll-lane")

    never = atoll.Service(write("never.py", "raise ValueError"))
    with atoll.Service(write("mortal.py", SERVICE)) as service:
        service.whoami()
        gc.collect()
        gc.disable()
        try:
            before = held()
            for _ in range(3):
                with contextlib.suppress(atoll.WorkerDied):
                    service.function("die")("exit")
                service.whoami()
                with contextlib.suppress(atoll.WorkerStartError):
                    never.start()
            # Not pytest.raises above: it keeps what was raised in a circle.
            until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
        finally:
            gc.enable()
            never.close()


def test_death_while_nobody_calls_is_noticed_and_replaced() -> None:
    @atoll.function
    def whoami() -> int:
        import os

        return os.getpid()

    first = whoami()
    os.kill(first, signal.SIGKILL)
    until(lambda: whoami.pid != first)  # none for a moment only: another one is started
    second = whoami()
    assert second != first


def test_every_waiting_caller_gets_a_worker_after_a_death(tmp_path: Path) -> None:
    @atoll.function
    def step(path: str, number: int) -> int:
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.002)
        if number == 0:
            os._exit(1)
        return number

    go = tmp_path / "go"
    futures = [step.submit(str(go), number) for number in range(5)]
    go.touch()
    assert isinstance(futures[0].exception(WITHIN), atoll.WorkerDied)
    assert [future.result(WITHIN) for future in futures[1:]] == [1, 2, 3, 4]


INTERRUPTIBLE = {
    "asleep": "import time; time.sleep(600)",
    "busy": "while True: pass",
    "deaf to signals": "import signal, time\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\ntime.sleep(600)",
    "waiting for a lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("how", INTERRUPTIBLE)
def test_a_timeout_ends_the_call_and_the_worker_goes_on(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @atoll.function
    def run(code: str, begun: str) -> dict[str, int]:
        open(begun, "w").close()
        here = {"told": 0}
        try:
            exec(code, {})
        except BaseException:
            here["told"] = 1
            raise
        return here

    run.start()
    pid = run.pid
    begun = tmp_path / "begun"
    not_before(monkeypatch, begun.exists)
    with pytest.raises(atoll.CallTimeout) as caught:
        run.options(timeout=1)(INTERRUPTIBLE[how], str(begun))
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.rung == "exception"
    text = str(caught.value)
    assert "run.run did not answer within 1 seconds" in text
    assert f"pid {pid}" in text
    assert "in run" in text  # where it was, also while C code held the interpreter lock
    assert run("pass", str(begun)) == {"told": 0}
    assert run.pid == pid


# Asleep, since what strikes at the jump of an empty loop is not caught by the `try` around it.
CATCHING = """
import os, time
while True:
    try:
        os.path.exists(begun) or os.mknod(begun)
        while True: time.sleep(600)
    except BaseException: pass
"""
# In C from before the file is there.
HOLDING = """
import itertools, os
sum(itertools.chain(filter(None, map(os.mknod, [begun])), itertools.repeat(1)))
"""
STUCK = {
    # what it does -> what it takes to end it
    "holding the interpreter lock": (HOLDING, "SIGTERM"),
    "catching everything": (CATCHING, "SIGTERM"),
    "catching everything, deaf to signals": (
        "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)" + CATCHING,
        "SIGKILL",
    ),
}


@pytest.mark.parametrize("how", STUCK)
def test_a_timeout_stops_a_worker_that_cannot_be_interrupted_and_what_it_started(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @atoll.function
    def run(path: str, code: str, begun: str) -> None:
        import os
        import subprocess

        grandchildren = [
            subprocess.Popen(["sleep", "601"]),
            subprocess.Popen(["sleep", "602"], start_new_session=True),
            subprocess.Popen(["sh", "-c", "sleep 603 & sleep 604"]),
        ]
        with open(path + ".new", "w") as file:
            file.write(" ".join(str(one.pid) for one in grandchildren))
        os.rename(path + ".new", path)
        exec(code, {"begun": begun})

    @atoll.function
    def fine() -> str:
        return "fine"

    run.start()
    old = run.pid
    pids = tmp_path / "pids"
    code, rung = STUCK[how]
    ends_at(monkeypatch, rung)
    begun = tmp_path / "begun"
    not_before(monkeypatch, begun.exists)
    with pytest.raises(atoll.CallTimeout) as caught:
        run.options(timeout=1)(str(pids), code, str(begun))
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.rung == rung
    text = str(caught.value)
    assert "run.run did not answer within 1 seconds" in text
    assert f"pid {old}" in text
    assert "in run" in text  # where it was, also while C code held the interpreter lock
    assert old is not None
    until_gone(old, *map(int, pids.read_text().split()))
    assert run.pid != old
    assert fine() == "fine"
    run.start()
    assert run.pid not in (None, old)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_call_is_ended_even_if_looking_where_it_is_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the last rung then: a worker is lost, and nobody waits for ever."""

    @atoll.function
    def nap(seconds: float) -> int:
        import os
        import time

        time.sleep(seconds)
        return os.getpid()

    def fail(self: object) -> str:
        raise OSError("cannot look")

    first = nap(0)
    monkeypatch.setattr("atoll.pool.worker.Worker.stacks", fail)
    with pytest.raises(atoll.CallTimeout) as caught:
        nap.options(timeout=0.2)(600)
    assert caught.value.rung == "SIGKILL"
    assert nap(0) != first


def test_a_timeout_without_an_error_costs_nothing() -> None:
    @atoll.function(timeout=60)
    def f(x: int) -> int:
        return x

    f(0)
    pid = f.pid
    assert [f(n) for n in range(50)] == list(range(50))
    assert f.pid == pid


def test_a_stopped_worker_is_ended_by_the_timeout() -> None:
    @atoll.function
    def f() -> int:
        return 1

    f()
    pid = f.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T")
    with pytest.raises(atoll.CallTimeout):
        f.options(timeout=0.3)()
    until_gone(pid)
    assert f() == 1


def test_a_timeout_in_the_queue_stops_nothing(tmp_path: Path) -> None:
    @atoll.function
    def wait_for(path: str) -> int:
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.002)
        return os.getpid()

    go = tmp_path / "go"
    running = wait_for.submit(str(go))
    until(running.running)
    until(lambda: wait_for.pid is not None)
    with pytest.raises(atoll.CallTimeout, match=r"did not get its turn within 0.1 seconds.*Nothing was stopped"):
        wait_for.options(timeout=0.1)(str(go))
    pid = wait_for.pid
    go.touch()
    assert running.result(WITHIN) == pid


@pytest.mark.parametrize("when", ["start", "setup"])
def test_start_timeout_says_where_it_was(
    write: Write, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_at(monkeypatch, "SIGKILL")
    begun = tmp_path / "begun"
    was_there = []
    look = Worker.stacks

    def stacks(worker: Worker) -> str:
        was_there.append(begun.exists())
        return look(worker)

    monkeypatch.setattr(Worker, "stacks", stacks)
    file = write(
        "slow.py",
        f"""\
        from atoll_worker import Service, expose
        import time

        def linger():
            open({str(begun)!r}, "w").close(); time.sleep(600)  # lingers here

        if {when == "start"}:
            linger()

        class Slow(Service):
            def setup(self):
                linger()

            @expose
            def f(self): return 1
        """,
    )
    for seconds in (2, 10, 50):  # once there was time enough to get there
        service = atoll.Service(file, start_timeout=seconds)
        began = time.monotonic()
        with pytest.raises(atoll.WorkerStartError) as caught:
            service.start()
        assert seconds <= time.monotonic() - began < seconds + 60
        if was_there[-1]:
            break
    text = str(caught.value)
    assert f"was not ready after start_timeout={seconds} seconds (in phase {when})" in text
    assert "lingers here" in text


INTERRUPTED = f"""\
import atoll, os, signal, sys, threading
{UNHURRIED}

@atoll.function
def hang(path):
    import os, time
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)
    HOW

@atoll.function
def fine():
    return "fine"

try:
    hang(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", hang.pid, fine(), flush=True)
"""


@pytest.mark.parametrize("how", ["time.sleep(600)", "while True: pass"])
def test_ctrl_c_during_a_call_is_raised_here_and_the_worker_goes_on(write: Write, tmp_path: Path, how: str) -> None:
    script = write("script.py", INTERRUPTED.replace("HOW", how))
    path = tmp_path / "pid"
    host = start_python(script, str(path))
    try:
        until(path.exists)
        worker = int(path.read_text())
        os.kill(host.pid, signal.SIGINT)
        out, _ = host.communicate(timeout=WITHIN)
        assert out == f"interrupted {worker} fine\n"
        assert host.returncode == 0
        until_gone(worker)
    finally:
        end(host)


def ends_by(function: Callable[[], int]) -> None:
    """Check that the worker of a call, which answers its process id, ends by it. The answer may come first: the fast
    lane is no descriptor."""
    pids: list[int] = []
    try:
        pids.append(function())
    except atoll.WorkerDied as death:
        pids.append(death.pid)
    until_gone(*pids)


def test_a_worker_that_breaks_the_wire_is_stopped() -> None:
    @atoll.function(health_interval=None)  # it does not have to be silent first
    def scribble(on: bool = True) -> int:
        import os

        for name in os.listdir("/proc/self/fd") if on else ():
            try:
                if int(name) >= 200 and os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    os.write(int(name), b"\xff" * 4096)
            except OSError:
                pass
        return os.getpid()

    ends_by(scribble)
    assert not is_gone(scribble(False))


def test_a_worker_that_closes_all_its_descriptors() -> None:
    @atoll.function
    def close_everything(on: bool = True) -> int:
        import os

        os.closerange(3, 4096 if on else 3)
        return os.getpid()

    ends_by(close_everything)
    assert not is_gone(close_everything(False))


def test_descriptors_that_user_code_closes_by_number_are_its_own() -> None:
    @atoll.function
    def close_low() -> Any:
        import os

        os.closerange(3, 200)
        return [os.read(0, 1), 7]

    assert close_low() == [b"", 7]
    assert close_low() == [b"", 7]
