# SPDX-License-Identifier: Apache-2.0
"""When the host ends, however it ends, its workers and all they started end: on every Python that is found here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.environments.interpreters import all_interpreters
from conditions import WITHIN, end, is_gone, start_python, until, until_gone

Write = Callable[[str, str], Path]

HOST = """\
import atoll, os, sys, threading

folder, what, python = sys.argv[1:4]

@atoll.function(python=python or None)
def work(folder, what):
    import os, subprocess, time
    grandchildren = []
    if what == "grandchildren":
        grandchildren = [subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sh", "-c", "sleep 601 & sleep 602"])]
    with open(folder + "/pids.new", "w") as file:
        file.write(" ".join(str(pid) for pid in [os.getpid(), *[one.pid for one in grandchildren]]))
    os.rename(folder + "/pids.new", folder + "/pids")
    if what == "computing":
        while True:
            pass
    if what == "holding the interpreter lock":
        import ctypes
        ctypes.PyDLL(None).sleep(ctypes.c_uint(600))
    if what == "idle":
        return
    time.sleep(600)

def call():
    try:
        work(folder, what)
    except atoll.AtollError:
        pass

if what == "idle":
    call()
else:
    threading.Thread(target=call, daemon=True).start()
sys.stdin.readline()
ENDING
"""

DOING = ["idle", "sleeping", "computing", "holding the interpreter lock", "grandchildren"]


def host_with_a_worker(write: Write, tmp_path: Path, what: str, ending: str = "", python: str = ""):  # type: ignore[no-untyped-def]
    """A host whose worker is at work, and the process ids of the worker and what it started."""
    script = write("host.py", HOST.replace("ENDING", ending))
    host = start_python(script, str(tmp_path), what, python, stdin=subprocess.PIPE)
    until((tmp_path / "pids").exists)
    return host, [int(word) for word in (tmp_path / "pids").read_text().split()]


@pytest.mark.parametrize("what", DOING)
def test_a_host_that_is_killed(write: Write, tmp_path: Path, what: str) -> None:
    host, pids = host_with_a_worker(write, tmp_path, what)
    assert not any(is_gone(pid) for pid in pids)
    end(host, signal.SIGKILL)
    until_gone(*pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGHUP])
def test_a_host_that_a_signal_ends(write: Write, tmp_path: Path, number: int) -> None:
    host, pids = host_with_a_worker(write, tmp_path, "sleeping")
    end(host, number)
    until_gone(*pids)


ENDINGS = {
    "os._exit": "os._exit(3)",
    "sys.exit": "sys.exit(3)",
    "an error": "raise RuntimeError",
    "exec": "os.execv('/bin/sleep', ['sleep', '0'])",
    "sys.exit with a thread that is waited for": (
        "threading.Thread(target=call).start()\nthreading.Timer(0, atoll.shutdown).start()\nsys.exit(3)"
    ),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_a_host_that_ends_itself_with_a_call_in_progress(write: Write, tmp_path: Path, how: str) -> None:
    host, pids = host_with_a_worker(write, tmp_path, "sleeping", ENDINGS[how])
    assert host.stdin is not None
    host.stdin.write("\n")
    host.stdin.flush()
    host.wait(WITHIN)
    end(host)
    until_gone(*pids)


FORKING = """\
pid = os.fork()
if pid == 0:
    open(folder + "/child.new", "w").write(str(os.getpid()))
    os.rename(folder + "/child.new", folder + "/child")
    import time
    time.sleep(600)
    os._exit(0)
sys.stdin.readline()
"""


def test_a_forked_child_that_outlives_the_host_keeps_no_worker_alive(write: Write, tmp_path: Path) -> None:
    host, pids = host_with_a_worker(write, tmp_path, "sleeping", FORKING)
    assert host.stdin is not None
    host.stdin.write("\n")
    host.stdin.flush()
    until((tmp_path / "child").exists)
    child = int((tmp_path / "child").read_text())
    try:
        end(host, signal.SIGKILL)
        until_gone(*pids)
        assert not is_gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


MULTIPROCESSING = """\
import multiprocessing, time
def nap():
    open(folder + "/child", "w").write(str(os.getpid()))
    time.sleep(600)
multiprocessing.get_context("fork").Process(target=nap).start()
while not os.path.exists(folder + "/child") or not open(folder + "/child").read():
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


def test_a_child_of_multiprocessing_that_outlives_the_host(write: Write, tmp_path: Path) -> None:
    host, pids = host_with_a_worker(write, tmp_path, "computing", MULTIPROCESSING)
    assert host.stdin is not None
    host.stdin.write("\n")
    host.stdin.flush()
    host.wait(WITHIN)
    end(host)
    child = int((tmp_path / "child").read_text())
    try:
        until_gone(*pids)
        assert not is_gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


STARTING = """\
import atoll, sys
service = atoll.Service(sys.argv[1] + "/slow.py")
service.start()
"""


@pytest.mark.parametrize("hold", ["import time; time.sleep(600)", "while True: pass"])
def test_a_host_that_is_killed_while_its_worker_starts(write: Write, tmp_path: Path, hold: str) -> None:
    write("slow.py", f"import os\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{hold}\n")
    host = start_python(write("host.py", STARTING), str(tmp_path))
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    end(host, signal.SIGKILL)
    until_gone(pid)


def test_a_host_that_is_killed_at_the_moment_of_the_first_call(write: Write, tmp_path: Path) -> None:
    """Hosts are killed sooner and later around the start of their worker; nothing of any of them is left.

    The leak check sees what is left: orphans belong to this process.
    """
    script = write(
        "host.py",
        """\
        import atoll, sys
        @atoll.function
        def f():
            import time
            time.sleep(600)
        print("calls", flush=True)
        f()
        """,
    )
    for delay in (0.0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04):
        host = start_python(script)
        assert host.stdout is not None
        assert host.stdout.readline() == "calls\n"
        try:
            host.wait(delay or 0.0001)
        except subprocess.TimeoutExpired:
            pass
        end(host, signal.SIGKILL)


OTHER_PYTHONS = [f"3.{minor}" for minor in range(9, 15) if (3, minor) != sys.version_info[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_workers_of_other_pythons_end_with_a_host_that_is_killed(write: Write, tmp_path: Path, version: str) -> None:
    python = installed(version)
    for number, what in enumerate(DOING):
        folder = tmp_path / str(number)
        folder.mkdir()
        host, pids = host_with_a_worker(write, folder, what, python=python)
        end(host, signal.SIGKILL)
        until_gone(*pids)


def installed(version: str) -> str:
    """The path of an interpreter of this version; skips the test where there is none."""
    for one in all_interpreters():
        if f"3.{one.version[1]}" == version:
            return one.path
    pytest.skip(f"no Python {version} here")
