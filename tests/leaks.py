# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: whatever a test starts is gone when it ends, or the test fails and says what was left.

After every test ``atoll.shutdown()`` is called, garbage is collected, and then, within a bounded time, there must be no
process, file descriptor, fast lane, segment or thread that was not there before. Processes that lost their parent count
too: the test process adopts them (PR_SET_CHILD_SUBREAPER), where otherwise init would, unseen.

What may stay is what atoll keeps for good, once per process: the threads in ``PERMANENT_THREADS`` and their pipes. They
are started before the first test.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PERMANENT_THREADS = ("atoll-warden", "atoll-output")
# Helpers that the standard library starts once and keeps.
_PERMANENT_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
# Seconds for what is ending to have ended: only a test that fails waits so long, on however busy a machine.
PATIENCE = 20.0
_PR_SET_CHILD_SUBREAPER = 36


def pytest_sessionstart() -> None:
    """Adopt orphans, and have atoll's permanent threads started before anything is counted."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.suppress(ImportError):
        from atoll.processes.output import output_reader
        from atoll.processes.warden import warden

        warden()
        output_reader()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Around every test; see the module."""
    before = everything()
    yield
    left = left_since(before, PATIENCE)
    if left:
        pytest.fail("the test left behind:\n" + "\n".join(f"  {one}" for one in left), pytrace=False)


def everything() -> set[str]:
    """What there is now, each thing in words that tell it from others."""
    return {*_processes(), *_descriptors(), *_lanes(), *_threads()}


def left_since(before: set[str], patience: float) -> list[str]:
    """What is there beside ``before``, given that much time, in seconds, to go."""
    if "atoll" in sys.modules:
        shutdown = getattr(sys.modules["atoll"], "shutdown", None)
        if shutdown is not None:
            shutdown()
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while True:
        gc.collect()
        if "atoll_worker.segments" in sys.modules:
            # Memory that nobody uses is kept to be used again; what is left after this is used by somebody.
            sys.modules["atoll_worker.segments"].store.trim()
        _reap_adopted()
        left = everything() - before
        if not left or time.monotonic() > deadline:
            return sorted(left)
        pause.wait(0.01)


def _status(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process; None if there is no such process."""
    try:
        # A program's name is cut after 15 bytes, also in the middle of a letter.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def _children() -> Iterator[tuple[int, str]]:
    """Process id and state letter of every child of this process."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            status = _status(int(name))
            if status is not None and status[1] == os.getpid():
                yield int(name), status[0]


def _command(pid: int) -> str:
    """The command line of a process; empty for one that has ended."""
    deadline = time.monotonic() + 1.0
    while True:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return ""
        status = _status(pid)
        # It is empty, too, for a moment after a program was started: whoever started it is told before that is loaded.
        if words or status is None or status[0] == "Z" or time.monotonic() > deadline:
            return words.replace(b"\0", b" ").decode("utf-8", "replace").strip()


def _processes() -> set[str]:
    found = set()
    for pid, state in _children():
        command = _command(pid)
        if not any(known in command for known in _PERMANENT_PROCESSES):
            found.add(f"process {pid}" + (f" ({command})" if state != "Z" else " (ended, never waited for)"))
    return found


def _reap_adopted() -> None:
    """Wait for ended processes that lost their parent; those that this process started are waited for by who did."""
    from_atoll = _own_process_ids()
    for pid, state in list(_children()):
        if state == "Z" and pid not in from_atoll:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _own_process_ids() -> set[int]:
    process = sys.modules.get("atoll.processes.process")
    return set() if process is None else {one.pid for one in list(process._alive) if not one.exited.is_set()}


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that listed the folder
        found.add(f"file descriptor {name} ({target})")
    return found


def _lanes() -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {
        f"{what} mapped at {line.split()[0]}"
        for what, name in (("fast lane", "memfd:atoll-lane"), ("segment", "memfd:atoll-segment"))
        for line in lines
        if name in line
    }


def _threads() -> set[str]:
    return {
        f"thread {thread.name!r} ({thread.ident}{', daemon' if thread.daemon else ''})"
        for thread in threading.enumerate()
        if thread.name not in PERMANENT_THREADS
    }
