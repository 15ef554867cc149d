# SPDX-License-Identifier: Apache-2.0
"""What processes use is what they use: against processes that were made to use a known amount."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.processes import Usage, tree_memory, tree_rss, usage, wants_processor
from atoll.processes.tree import kill_tree
from atoll.processes.usage import start_time
from conditions import until

MB = 1_000_000

Run = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def run() -> Iterator[Run]:
    """Run Python code that prints a line when it is ready, until the end of the test."""
    started = []

    def start(code: str) -> subprocess.Popen[str]:
        code = f"import mmap, os, time\n{code}\nprint('ready', flush=True)\ntime.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        kill_tree(process.pid)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_memory_is_seen(run: Run) -> None:
    plain = usage(run("").pid, private=True)
    full = usage(run("data = b'x' * 100_000_000").pid, private=True)
    assert plain is not None
    assert full is not None
    assert 90 * MB < full.rss - plain.rss < 110 * MB
    assert full.private is not None
    assert plain.private is not None
    assert 90 * MB < full.private - plain.private < 110 * MB
    assert full.private <= full.rss


def test_private_memory_is_looked_at_on_request_only() -> None:
    own = usage(os.getpid())
    assert own is not None
    assert own.private is None


def test_processor_time_threads_and_state_are_seen() -> None:
    def own() -> Usage:
        found = usage(os.getpid())
        assert found is not None
        return found

    def counts_threads() -> bool:
        """Both at one moment: a thread that was joined goes a little later."""
        return own().threads == len(os.listdir("/proc/self/task"))

    before = own()
    assert before.state == "R"
    until(counts_threads)
    goal = sum(os.times()[:2]) + 0.2
    while sum(os.times()[:2]) < goal:
        pass
    assert own().cpu - before.cpu > 0.1
    assert abs(own().cpu - sum(os.times()[:2])) < 0.2
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    assert str(thread.native_id) in os.listdir("/proc/self/task")
    until(counts_threads)
    leave.set()
    thread.join()


def test_a_sleeping_and_a_stopped_process_are_told_apart(run: Run) -> None:
    process = run("")

    def state() -> str | None:
        found = usage(process.pid)
        return found.state if found else None

    until(lambda: state() == "S")
    process.send_signal(19)
    until(lambda: state() == "T")


def test_who_wants_a_processor(run: Run) -> None:
    """Any of its threads, whether it gets one or not."""
    idle = run("")
    spin = "def spin():\n    while True: pass"
    busy = run(f"import threading\n{spin}\nthreading.Thread(target=spin, daemon=True).start()")
    until(lambda: not wants_processor(idle.pid))
    until(lambda: wants_processor(busy.pid))
    busy.kill()
    until(lambda: not wants_processor(busy.pid))


def test_of_a_process_that_is_gone_there_is_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert usage(process.pid, private=True) is None
    assert tree_rss(process.pid) == tree_memory(process.pid) == tree_memory(process.pid, exact=True) == 0
    assert start_time(process.pid) is None


def test_the_memory_of_a_tree_counts_what_is_shared_once_if_asked(run: Run) -> None:
    """A process with 100 MB that forked twice: three that share it."""
    process = run("data = b'x' * 100_000_000\nos.fork() and os.fork() or time.sleep(600)")
    until(lambda: tree_rss(process.pid) > 300 * MB)
    assert tree_memory(process.pid) > 300 * MB
    assert 100 * MB < tree_memory(process.pid, exact=True) < 130 * MB
    single = usage(process.pid)
    assert single is not None
    assert tree_rss(process.pid) > 2 * single.rss


def test_what_can_be_read_back_from_a_file_is_not_held(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * 100_000_000)
    mapped = run(f"m = mmap.mmap(os.open({str(file)!r}, os.O_RDONLY), 0, prot=mmap.PROT_READ)\nsum(m[::4096])")
    found = usage(mapped.pid)
    assert found is not None
    assert found.rss > 100 * MB
    assert tree_memory(mapped.pid) < 30 * MB
    assert tree_memory(mapped.pid, exact=True) < 30 * MB


def test_shared_memory_is_held(run: Run) -> None:
    shared = run("m = mmap.mmap(-1, 100_000_000)\nm.write(b'x' * 100_000_000)")
    assert tree_memory(shared.pid) > 100 * MB
    assert tree_memory(shared.pid, exact=True) > 100 * MB
