# SPDX-License-Identifier: Apache-2.0
"""Stacks: of real processes that offer them, whatever they are doing; and never a signal to one that does not."""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import atoll_worker
from atoll.errors import WorkerError
from atoll.processes import stacks as module
from atoll.processes.stacks import Stacks, native_stacks, python_stacks, short_stacks, shorten, stacks, worker_at
from atoll_worker.stacks import NAME, SIGNAL
from conditions import WITHIN, children_of, is_gone, state_of, until

SOURCE = str(Path(atoll_worker.__file__).parents[1])
PYENV = sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3")))
PYTHONS = [sys.executable, *(one for one in PYENV if any(f"/3.{minor}." in one for minor in (9, 13)))]

# A process that offers its stacks, and then does what is under test. Each kind says that it has begun.
SCRIPT = f"""\
import sys
sys.path.insert(0, {SOURCE!r})
from atoll_worker import stacks
assert stacks.offer()
assert stacks.tell_crashes()
import collections, ctypes, itertools, os, threading, time

def say():
    os.write(1, b"ready")

def sleeping():
    say()
    time.sleep(600)

def busy():
    say()
    while True:
        pass

def holding_the_interpreter_lock():
    say()
    collections.deque(itertools.repeat(None), maxlen=0)

def asleep_with_the_interpreter_lock():
    sleep = ctypes.PyDLL(None).sleep  # once: whoever looks wakes it up, and may look again at once
    say()
    while True:
        sleep(600)

def one_of_several():
    time.sleep(600)

def several_threads():
    for _ in range(3):
        threading.Thread(target=one_of_several, daemon=True).start()
    say()
    time.sleep(600)

def forking():
    if os.fork() == 0:
        stacks.offer()
    say()
    time.sleep(600)

def running_a_child():
    import subprocess
    with subprocess.Popen(["sleep", "600"]):
        say()
        time.sleep(600)

def taken_away():
    import signal
    signal.signal({SIGNAL}, signal.SIG_DFL)
    say()
    time.sleep(600)

def crashing():
    import signal
    os.kill(os.getpid(), signal.SIGSEGV)

def crashing_its_own_way():
    import faulthandler, signal
    faulthandler.enable(file=open(sys.argv[2], "w"))
    os.kill(os.getpid(), signal.SIGSEGV)

def deep(depth=90):
    deep(depth - 1) if depth else sleeping()

def much_to_tell():
    def descend(depth):
        descend(depth - 1) if depth else time.sleep(600)
    for _ in range(60):
        threading.Thread(target=descend, args=(80,), daemon=True).start()
    sleeping()

def blocking_signals():
    import signal
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    sleeping()

globals()[sys.argv[1]]()
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process of a kind, and wait until it does what it is for."""
    script = tmp_path / "process.py"
    script.write_text(SCRIPT)
    started: list[subprocess.Popen[bytes]] = []

    def start_kind(kind: str, python: str = sys.executable, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*before, python, "-I", str(script), kind], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        return process

    yield start_kind
    for process in started:
        os.kill(process.pid, signal.SIGCONT)
        for one in children_of(process.pid):
            os.kill(one, signal.SIGKILL)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def dump(process: subprocess.Popen[bytes]) -> str:
    """Its Python stacks, waited for on a machine that may be busy."""
    return python_stacks(process.pid, WITHIN)


def until_in(process: subprocess.Popen[bytes], function: str) -> None:
    """Wait until its main thread has come to what this function of it is for: it says "ready" a moment before."""
    lines = SCRIPT.splitlines()

    def has_come() -> bool:
        innermost = re.search(r", line (\d+) in (\S+)$", dump(process), re.MULTILINE)
        assert innermost is not None
        return innermost[2] == function and lines[int(innermost[1]) - 1].strip() != "say()"

    until(has_come)


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.split("/")[-3])
@pytest.mark.parametrize(
    "kind", ["sleeping", "busy", "holding_the_interpreter_lock", "asleep_with_the_interpreter_lock"]
)
def test_python_stacks_at_any_time(start: Start, kind: str, python: str) -> None:
    process = start(kind, python)
    until_in(process, kind)
    text = dump(process)
    lines = text.splitlines()
    assert lines[0].startswith(("Current thread 0x", "Thread 0x"))
    assert 'process.py", line ' in lines[1]
    assert lines[1].endswith(f" in {kind}")
    assert "<module>" in lines[-1]


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.split("/")[-3])
def test_every_thread_is_there(start: Start, python: str) -> None:
    process = start("several_threads", python)
    until(lambda: dump(process).count("in one_of_several") == 3)
    assert dump(process).count("most recent call first") == 4


def test_asking_two_hundred_times_leaves_nothing(start: Start) -> None:
    process = start("deep")
    until_in(process, "sleeping")
    first = dump(process)
    descriptors = os.listdir(f"/proc/{process.pid}/fd")
    ours = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        assert dump(process) == first
    assert os.listdir(f"/proc/{process.pid}/fd") == descriptors
    assert len(os.listdir("/proc/self/fd")) == ours
    (file,) = [f"/proc/{process.pid}/fd/{fd}" for fd in descriptors if NAME in _link(process.pid, fd)]
    assert os.stat(file).st_size == 0
    assert os.stat(file).st_blocks == 0
    assert process.poll() is None


def test_a_long_answer_is_waited_for_to_its_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it has to wait for a processor in the middle."""
    monkeypatch.setattr(module, "_SETTLED", 0.0)
    process = start("much_to_tell")
    until(lambda: dump(process).count("in descend") == 60 * 81)
    for _ in range(20):
        text = dump(process)
        assert text.count("most recent call first") == 61
        assert text.count("in descend") == 60 * 81


def _link(pid: int, fd: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""


def test_several_may_ask_at_once(start: Start) -> None:
    process = start("deep")
    until_in(process, "sleeping")
    first = dump(process)
    answers: list[str] = []

    def ask() -> None:
        for _ in range(10):
            answers.append(dump(process))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [first] * 40


def test_a_process_that_offers_nothing_is_never_sent_the_signal() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        assert python_stacks(process.pid) == ""
        with pytest.raises(WorkerError, match="is no worker of atoll"):
            stacks(process.pid)
        assert process.poll() is None
        process.kill()


def test_nor_is_one_that_gave_the_handler_up(start: Start) -> None:
    process = start("taken_away")
    assert python_stacks(process.pid) == ""
    until(lambda: state_of(process.pid) == "S")


def test_nor_are_its_children(start: Start) -> None:
    process = start("running_a_child")
    (child,) = children_of(process.pid)
    assert python_stacks(child) == ""
    assert not any(NAME in _link(child, fd) for fd in os.listdir(f"/proc/{child}/fd"))
    assert not is_gone(child)
    assert "running_a_child" in dump(process)
    assert not is_gone(child)


def test_a_forked_child_offers_its_own(start: Start) -> None:
    process = start("forking")
    (child,) = children_of(process.pid)
    until(lambda: len(files_of(child)) == 1 and files_of(child) != files_of(process.pid))
    assert "in forking" in python_stacks(child, WITHIN)
    assert "in forking" in dump(process)


def files_of(pid: int) -> set[str]:
    """What it holds of files for stacks: while a child that was forked changes to its own, both."""
    links = [(fd, _link(pid, fd)) for fd in os.listdir(f"/proc/{pid}/fd")]
    return {_file(pid, fd) for fd, link in links if NAME in link}


def _file(pid: int, fd: str) -> str:
    try:
        return str(os.stat(f"/proc/{pid}/fd/{fd}").st_ino)
    except OSError:
        return "closed"


def test_a_stopped_process_is_not_waited_for_and_not_woken(start: Start) -> None:
    process = start("sleeping")
    os.kill(process.pid, signal.SIGSTOP)
    until(lambda: state_of(process.pid) == "T")
    assert dump(process) == ""
    assert not module._mask(module._status(f"/proc/{process.pid}/status"), "ShdPnd")
    os.kill(process.pid, signal.SIGCONT)
    until(lambda: state_of(process.pid) != "T")
    assert dump(process).count("most recent call first") == 1  # not once more for the time it was stopped


def test_who_blocks_every_signal_does_not_answer(start: Start) -> None:
    process = start("blocking_signals")
    assert python_stacks(process.pid, 0.05) == ""
    assert python_stacks(process.pid, 0.05) == ""
    assert process.poll() is None


def test_the_last_words_of_a_crash(tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(SCRIPT)
    crashed = subprocess.run([sys.executable, "-I", str(script), "crashing"], capture_output=True, text=True)
    assert crashed.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in crashed.stderr
    assert "in crashing" in crashed.stderr
    log = tmp_path / "own"
    command = [sys.executable, "-I", str(script), "crashing_its_own_way", str(log)]
    crashed = subprocess.run(command, capture_output=True, text=True)
    assert crashed.returncode == -signal.SIGSEGV
    assert crashed.stderr == ""
    assert "in crashing_its_own_way" in log.read_text()


# -- who may be asked ------------------------------------------------------------------------------------------------


def test_no_such_process(start: Start) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, 1 << 40, -1):
        with pytest.raises(WorkerError, match=f"there is no process {pid}"):
            stacks(pid)
        assert short_stacks(pid) == Stacks("", "")
        assert native_stacks(pid) == ""


def test_one_that_has_ended_and_was_not_waited_for() -> None:
    process = subprocess.Popen(["true"])
    until(lambda: is_gone(process.pid))
    with pytest.raises(WorkerError, match="has ended"):
        stacks(process.pid)
    process.wait()


def test_the_host_of_workers_is_told_which_they_are(start: Start) -> None:
    process = start("sleeping")
    with pytest.raises(WorkerError, match=rf"process {os.getpid()} .*workers below it: .*\b{process.pid}\b"):
        stacks(os.getpid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users(start: Start, tmp_path: Path) -> None:
    process = start("sleeping")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            worker_at(process.pid)
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said.startswith(f"WorkerError: process {process.pid} belongs to user 'root'")
    assert process.poll() is None


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_in_a_sandbox(start: Start) -> None:
    sandbox = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "--die-with-parent"]
    if subprocess.run([*sandbox, "true"], capture_output=True).returncode != 0:
        pytest.skip("bubblewrap may not make namespaces here")
    process = start("sleeping", before=tuple(sandbox))
    worker = worker_at(process.pid)
    assert worker != process.pid
    assert "in sleeping" in dump(process)
    assert native_stacks(process.pid, WITHIN) != ""


# -- native ----------------------------------------------------------------------------------------------------------


def tools(*names: str) -> tuple[tuple[str, tuple[str, ...], Callable[[str], list[str]]], ...]:
    return tuple(one for one in module._TOOLS if one[0] in names)


@pytest.mark.parametrize("tool", ["eu-stack", "gdb", "py-spy"])
def test_native_stacks_by_each_tool(start: Start, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    process = start("holding_the_interpreter_lock")
    monkeypatch.setattr(module, "_TOOLS", tools(tool))
    until_in(process, "holding_the_interpreter_lock")
    text = native_stacks(process.pid, 60)
    if "not permitted" in text.splitlines()[0]:
        pytest.skip(text.splitlines()[0])
    assert text.startswith("Thread "), text
    assert "deque" in text
    if tool != "py-spy":
        assert str(process.pid) in text.splitlines()[0]
        assert text.splitlines()[1].startswith("#0 ")
    until(lambda: state_of(process.pid) == "R")


def test_without_any_tool_the_kernel_is_asked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("several_threads")
    monkeypatch.setattr(module, "_TOOLS", ())
    first, *lines = native_stacks(process.pid).splitlines()
    assert first.startswith("No native frames (none of eu-stack")
    assert sum(line.startswith("Thread ") for line in lines) == 4
    assert lines[0].startswith(f"Thread {process.pid} (")


def failing_tool(folder: Path, text: str) -> None:
    tool = folder / "eu-stack"
    tool.write_text("#!/bin/sh\n" + text)
    tool.chmod(0o755)


def test_a_tool_that_may_not_look(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("sleeping")
    failing_tool(tmp_path, "echo 'ptrace: Operation not permitted' >&2; exit 1\n")
    monkeypatch.setattr(module, "_TOOLS", tools("eu-stack"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second, *_ = native_stacks(process.pid).splitlines()
    assert first.startswith("No native frames (eu-stack: ptrace: Operation not permitted")
    assert second.startswith(f"Thread {process.pid} (")


def test_a_tool_that_hangs_and_left_the_process_stopped(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start("sleeping")
    # What a tracer leaves behind that is killed right after it stopped its process.
    failing_tool(tmp_path, f"kill -STOP {process.pid}; exec sleep 600\n")
    monkeypatch.setattr(module, "_TOOLS", tools("eu-stack"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = time.monotonic()
    assert "not done within 0.5 seconds" in native_stacks(process.pid, 0.5)
    assert time.monotonic() - began < WITHIN
    until(lambda: state_of(process.pid) == "S")
    # A process that was stopped before stays so.
    os.kill(process.pid, signal.SIGSTOP)
    until(lambda: state_of(process.pid) == "T")
    native_stacks(process.pid, 0.1)
    assert state_of(process.pid) == "T"


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.1, 0.2])
def test_gdb_killed_in_the_middle(start: Start, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("busy")
    monkeypatch.setattr(module, "_TOOLS", tools("gdb"))
    native_stacks(process.pid, seconds)
    until(lambda: state_of(process.pid) == "R")
    assert "in busy" in dump(process)


# -- short forms -----------------------------------------------------------------------------------------------------


def test_short_stacks_keep_the_innermost_frames(start: Start) -> None:
    process = start("deep")
    until_in(process, "sleeping")
    short = short_stacks(process.pid, timeout=WITHIN, native_timeout=WITHIN, lines=10)
    lines = short.python.splitlines()
    assert len(lines) <= 10
    assert lines[1].endswith("in sleeping")
    assert lines[2] == "    time.sleep(600)"
    assert lines[-1] == "  … 90 more"
    assert 0 < len(short.native.splitlines()) <= 10


def test_shortening_leaves_every_thread_its_innermost_frames() -> None:
    text = "\n\n".join(f"Thread {n}:\n" + "\n".join(f"  File {n}.{depth}" for depth in range(20)) for n in range(3))
    lines = shorten(text, 12).splitlines()
    assert lines == [
        line for n in range(3) for line in (f"Thread {n}:", f"  File {n}.0", f"  File {n}.1", "  … 18 more")
    ]
    assert shorten(text, 1000) == text.replace("\n\n", "\n")
    many = "\n".join(f"Thread {n}:\n#0  f{n}\n#1  g\n#2  h\n#3  i" for n in range(50))
    lines = shorten(many, 12).splitlines()
    assert lines[-1] == "(46 more threads)"
    assert len(lines) == 13
    assert lines[:3] == ["Thread 0:", "#0  f0", "  … 3 more"]
    assert shorten("", 5) == ""
