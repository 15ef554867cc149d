# SPDX-License-Identifier: Apache-2.0
"""Processes: whole trees end, every end is noticed, the warden survives what it is told to do, forks are let go."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import atoll
from atoll.pool import worker as worker_module
from atoll.processes import start_process, warden
from atoll.processes.ends import Lifeline
from atoll.processes.output import Stream, output_reader
from atoll.processes.tree import descendants, kill_tree
from atoll.processes.warden import Warden
from conditions import WITHIN, children_of, end, is_gone, run_python, until, until_gone

FAMILY = """\
import os, subprocess, sys, time
subprocess.Popen(["sleep", "600"])
subprocess.Popen(["sleep", "601"], start_new_session=True)
subprocess.Popen(["sh", "-c", "sleep 602 & sleep 603"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def family() -> subprocess.Popen[str]:
    """A process with descendants in and out of its group."""
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    until(lambda: len(descendants(process.pid)) == 5)
    return process


def test_descendants_are_found_and_end_with_the_tree(family: subprocess.Popen[str]) -> None:
    strays = descendants(family.pid)
    assert set(children_of(family.pid)) < set(strays)
    kill_tree(family.pid)
    assert family.wait(20) == -signal.SIGKILL
    until_gone(*strays)


def test_nobody_has_descendants_who_does_not_exist() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert descendants(ended.pid) == []
    kill_tree(ended.pid)  # does nothing


def test_the_warden_raises_what_a_command_raises_and_goes_on() -> None:
    def fail() -> None:
        raise LookupError("on the warden's thread")

    with pytest.raises(LookupError):
        warden().run(fail)
    assert warden().run(threading.current_thread).name == "atoll-warden"
    assert warden().run(lambda: warden().run(lambda: 7)) == 7


def test_the_warden_survives_a_timer_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def fail() -> None:
        raise LookupError("in a timer")

    with caplog.at_level(logging.ERROR, "atoll.processes"):
        warden().after(0, fail)
        warden().after(0.01, done.set)
        assert done.wait(20)
        until(lambda: "the warden stumbled" in caplog.text)
    assert warden().run(lambda: 1) == 1


def test_the_warden_does_not_forget_what_follows_a_command_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def post_both() -> None:
        for command in (fail, done.set):
            warden()._commands.append(command)  # as if what woke it for them had been read already

    def fail() -> None:
        raise LookupError("in a command")

    with caplog.at_level(logging.CRITICAL, "atoll.processes"):
        warden().post(post_both)
        assert done.wait(60)


def test_timers_run_in_the_order_of_their_times() -> None:
    order: list[int] = []

    def begin() -> None:
        # On its own thread, which runs none of them before it knows all; hours apart, however long this takes.
        for number in (3, 1, 2):
            warden().after((number - 4) * 3600, lambda n=number: order.append(n))

    warden().run(begin)
    until(lambda: len(order) == 3)
    assert order == [1, 2, 3]


class Child:
    """Something to watch."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command)
        self.pid = self._process.pid
        self.reaped = threading.Event()

    def open_pidfd(self) -> int:
        return os.pidfd_open(self.pid)

    def reap(self) -> None:
        self.status = self._process.wait()
        self.reaped.set()


@pytest.mark.parametrize("with_pidfd", [True, False])
def test_an_end_is_noticed(monkeypatch: pytest.MonkeyPatch, with_pidfd: bool) -> None:
    if not with_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    quick, slow = warden().run(lambda: (Child("true"), Child("sleep", "600")))
    for child in (quick, slow):
        warden().run(lambda child=child: warden().watch(child))
    assert quick.reaped.wait(20)
    assert quick.status == 0
    assert not slow.reaped.is_set()
    os.kill(slow.pid, signal.SIGKILL)
    assert slow.reaped.wait(20)
    assert slow.status == -signal.SIGKILL


def test_calls_deaths_and_timeouts_without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")

    @atoll.function
    def work(what: str) -> str:
        import os
        import time

        if what == "die":
            os._exit(9)
        if what == "hang":
            time.sleep(600)
        return what

    assert work("x") == "x"
    with pytest.raises(atoll.WorkerDied, match="exited with code 9"):
        work("die")
    with pytest.raises(atoll.CallTimeout):
        work.options(timeout=0.1)("hang")
    assert work("y") == "y"
    pid = work.pid
    assert pid is not None
    work.close()
    until_gone(pid)


def test_how_a_worker_ended_is_known_though_it_is_seen_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warden's thread may get no processor just when the connections of a worker close."""

    @atoll.function
    def work(what: str) -> str:
        import os

        if what == "die":
            os._exit(9)
        return what

    assert work("x") == "x"
    monkeypatch.setattr(worker_module, "_END_GRACE", 0.01)
    warden().post(lambda: time.sleep(0.5))
    with pytest.raises(atoll.WorkerDied, match="exited with code 9"):
        work("die")


def test_a_worker_whose_end_somebody_else_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGCHLD ignored: the kernel reaps, nobody learns the status, and it is noticed all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:

        @atoll.function
        def die() -> None:
            import os

            os._exit(5)

        with pytest.raises(atoll.WorkerDied) as caught:
            die()
        assert caught.value.exit_code is None
        assert caught.value.signal is None
        until_gone(caught.value.pid)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_process_that_cannot_be_started_leaves_nothing_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No such file"):
        start_process(str(tmp_path / "no-python"), "nobody", {})
    no_program = tmp_path / "text"
    no_program.write_text("not a program")
    no_program.chmod(0o755)
    with pytest.raises(OSError, match="Exec format error"):
        start_process(str(no_program), "nobody", {})
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def test_workers_hold_no_descriptor_of_each_other_or_of_the_host() -> None:
    @atoll.function
    def descriptors() -> dict[str, str]:
        import os

        found = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                found[name] = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                pass
        return found

    other = atoll.function(lambda: 1)
    other()
    secret = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        found = descriptors()
    finally:
        os.close(secret)
    assert "/dev/zero" not in found.values()
    sockets = [target for target in found.values() if target.startswith("socket:")]
    pipes = [target for target in found.values() if target.startswith("pipe:")]
    assert len(sockets) == 3  # data, control, and what passes descriptors
    assert len(pipes) == 3  # what it prints, and the lifeline
    assert found["0"] == "/dev/null"
    # Out of the reach of code that closes descriptors by number. (Of the lane only the mapping counts.)
    low = [target for name, target in found.items() if 3 <= int(name) < 200 and "memfd:atoll-lane" not in target]
    assert low == []


FORKED = """\
import os, sys, atoll

@atoll.function
def pid():
    import os
    return os.getpid()

@atoll.function
def other():
    import os
    return os.getpid()

first = pid()
child = os.fork()
if child == 0:
    mine = pid(), other()
    assert first not in mine
    atoll.shutdown()
    print("child", len(set(mine)), flush=True)
    os._exit(0)
os.waitpid(child, 0)
assert pid() == first, "the child's calls and shutdown are none of the parent's business"
print("parent", flush=True)
"""


def test_a_forked_child_has_workers_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    done = run_python(script)
    assert done.stderr == ""
    assert done.stdout.split() == ["child", "2", "parent"]
    assert done.returncode == 0


def test_a_child_forked_by_multiprocessing_may_call(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(
        "import atoll, multiprocessing\n"
        "@atoll.function\ndef double(x):\n    return 2 * x\n"
        "def work(x):\n    return double(x)\n"
        "assert double(1) == 2\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        print(pool.map(work, range(6)))\n"
        "        pool.close()\n        pool.join()\n"
    )
    done = run_python(script)
    assert done.stdout == "[0, 2, 4, 6, 8, 10]\n", done.stderr
    assert done.returncode == 0


def test_many_workers_start_and_end_side_by_side() -> None:
    functions = [atoll.function(lambda: __import__("os").getpid()) for _ in range(12)]
    futures = [function.submit() for function in functions]
    pids = {future.result(3 * WITHIN) for future in futures}
    assert len(pids) == 12
    began = time.monotonic()
    atoll.shutdown()
    assert time.monotonic() - began < 20
    until_gone(*pids)


# -- output ----------------------------------------------------------------------------------------------------------


def stream() -> tuple[Stream, int]:
    read, write = os.pipe()
    one = Stream(read, "test", 1, "stdout")
    output_reader().add(one)
    return one, write


def test_lines_are_put_together_and_the_rest_comes_at_the_end() -> None:
    one, write = stream()
    for part in (b"first ", b"line\nsec", b"ond line\n\nlast"):
        os.write(write, part)
    until(lambda: list(one.last_lines) == ["first line", "second line", ""])
    os.close(write)
    assert one.ended.wait(20)
    assert list(one.last_lines) == ["first line", "second line", "", "last"]


def test_a_stream_that_never_ends_can_be_dropped() -> None:
    one, write = stream()
    os.write(write, b"before\n")
    until(lambda: list(one.last_lines) == ["before"])
    output_reader().drop(one)
    assert one.ended.wait(20)
    output_reader().drop(one)  # again does nothing
    other, other_write = stream()
    os.write(other_write, b"still read\n")
    until(lambda: list(other.last_lines) == ["still read"])
    os.close(write)
    os.close(other_write)
    assert other.ended.wait(20)


def test_a_worker_that_leaves_a_child_with_its_output_ends_all_the_same() -> None:
    """A grandchild in a session of its own outlives an orderly end of the worker, and holds its pipes: let go."""

    @atoll.function
    def leave() -> int:
        import subprocess

        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    stray = leave()
    streams = leave._pool.workers[0].process._streams  # type: ignore[union-attr]
    leave.close()
    assert all(one.ended.wait(20) for one in streams)
    if not is_gone(stray):
        os.kill(stray, signal.SIGKILL)
    until_gone(stray)


def test_a_warden_of_its_own_can_be_let_go() -> None:
    """What a forked child does with the parent's: its descriptors are closed, and only they."""
    read, write = os.pipe()
    other = Warden.__new__(Warden)
    other._wake_read, other._wake_write, other._watched = read, write, {}
    other.forget()
    for fd in (read, write):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    other.forget()  # once more does nothing


@pytest.fixture
def wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread lets go of a low number between the making of the one end of a pipe and of the other."""
    make = os.pipe

    def in_wrong_order() -> tuple[int, int]:
        read, write = make()
        higher = fcntl.fcntl(read, fcntl.F_DUPFD_CLOEXEC, write + 1)
        os.close(read)
        return higher, write

    monkeypatch.setattr(os, "pipe", in_wrong_order)


@pytest.mark.usefixtures("wrong_order")
def test_the_write_end_of_a_lifeline_lies_between_the_read_ends_whatever_numbers_they_get() -> None:
    lifeline = Lifeline.make()
    try:
        assert lifeline.lower < lifeline.write < lifeline.upper
        assert not any(os.get_inheritable(fd) for fd in lifeline)
        for read in lifeline.passed:
            os.write(lifeline.write, b"x")
            assert os.read(read, 1) == b"x"
    finally:
        lifeline.close()


@pytest.mark.parametrize("free", range(3))
def test_a_lifeline_for_which_descriptors_do_not_suffice_leaves_none(free: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd")) + 8
    filled = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                filled.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(free):
            os.close(filled.pop())
        with pytest.raises(OSError, match="Too many open files"):
            Lifeline.make()
        for _ in range(free):  # they are free again
            filled.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in filled:
            os.close(fd)


def test_a_forked_child_lets_go_of_every_lifeline(tmp_path: Path) -> None:
    """Also of those whose worker is only being started, by another thread."""
    script = tmp_path / "forks.py"
    script.write_text("""
import os
from atoll.processes.ends import Lifeline

lifelines = [Lifeline.make() for _ in range(2)]
closed = Lifeline.make()
closed.close()
others = os.pipe()  # have the numbers of that one
assert set(others) <= set(closed)
pid = os.fork()
if pid == 0:
    for fd in (fd for lifeline in lifelines for fd in lifeline):
        try:
            os.fstat(fd)
        except OSError:
            continue
        os._exit(1)
    os.write(others[1], b"x")
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert os.read(others[0], 1) == b"x"
for lifeline in lifelines:
    os.write(lifeline.write, b"x")
    lifeline.close()
print("well")
""")
    ended = run_python(script)
    assert ended.stdout == "well\n", ended.stderr


# Starts a group whose leader leaves a process behind, as a worker may, and then lets go of the lifeline.
HOST = """\
import os, subprocess, sys
from atoll.processes.ends import Lifeline

how, numbers, leader = sys.argv[1:]
spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
if numbers == "scattered":
    os.close(spare[0])
    os.close(spare[2])
lifeline = Lifeline.make()
leader = subprocess.Popen([sys.executable, "-c", leader, *map(str, lifeline.passed)], pass_fds=lifeline.passed,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
stray = int(leader.stdout.readline())
if how == "killed first":
    # The leader is told by the closing of a descriptor above the lifeline, and preempts what closes the rest.
    assert leader.stdin.fileno() > lifeline.upper
    for pid in (0, leader.pid):
        os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
else:
    leader.stdin.close()
    leader.wait()
ends = sorted(lifeline)
print(stray, flush=True)
sys.stdin.readline()
if how.startswith("killed"):
    os.kill(os.getpid(), 9)
elif how == "together":
    os.closerange(3, ends[-1] + 1)
else:
    for fd in ends if how == "rising" else reversed(ends):
        os.close(fd)
print("closed", flush=True)
sys.stdin.readline()
"""
LEADER = """\
import os, subprocess, sys
from atoll_worker.lifeline import hold

hold(*map(int, sys.argv[1:]))
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
os.read(0, 1)
os._exit(0)
"""


@pytest.mark.parametrize("numbers", ["in a row", "scattered"])
@pytest.mark.parametrize("how", ["rising", "falling", "together", "killed", "killed first"])
def test_what_a_worker_left_ends_in_whatever_order_the_host_lets_go_of_its_lifeline(how: str, numbers: str) -> None:
    for _ in range(10 if how == "killed first" else 1):  # whether it is held up in between is not certain
        host = subprocess.Popen(
            [sys.executable, "-c", HOST, how, numbers, LEADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert host.stdin is not None
        assert host.stdout is not None
        try:
            stray = int(host.stdout.readline())
            assert not is_gone(stray)
            host.stdin.write("\n")
            host.stdin.flush()
            assert host.stdout.readline() == ("" if how.startswith("killed") else "closed\n")
            if how == "killed first":
                # What others leave it of the processor may be so little that it takes minutes to end.
                with contextlib.suppress(AssertionError):
                    until_gone(stray, within=5)
                os.sched_setscheduler(host.pid, os.SCHED_OTHER, os.sched_param(0))
            until_gone(stray)
        finally:
            end(host)
