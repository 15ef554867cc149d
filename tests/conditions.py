# SPDX-License-Identifier: Apache-2.0
"""Waiting for conditions, for all tests: never for a time, always with a bound.

What does not belong here: anything that knows what atoll is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Seconds after which what should have happened has not. Generous: it is only reached by a test that fails.
WITHIN = 60.0


def until(condition: Callable[[], Any], within: float = WITHIN, what: str = "") -> Any:
    """The first true value of ``condition``, looked at again and again; fails the test after ``within`` seconds."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} seconds: {what or condition}")
        pause.wait(0.005)


def state_of(pid: int) -> str:
    """The state letter of a process as the kernel has it; ``"gone"`` if it has ended, waited for or not."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return "gone" if letter in "ZX" else letter


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    return state_of(pid) == "gone"


def until_gone(*pids: int, within: float = WITHIN) -> None:
    """Wait until all these processes have ended."""
    until(lambda: all(is_gone(pid) for pid in pids), within, f"the end of processes {pids}")


def children_of(pid: int) -> list[int]:
    """Process ids of the living children of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it, or a thread of it, may end at any moment, also while it is listed
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += [int(word) for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return [one for one in found if not is_gone(one)]


def run_python(file: Path, *arguments: str, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a file with this interpreter, to its end."""
    return subprocess.run(
        [sys.executable, str(file), *arguments], capture_output=True, text=True, timeout=timeout, **options
    )


def start_python(file: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a file with this interpreter, its output in a pipe."""
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-u", str(file), *arguments], text=True, **options)


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that ``start_python`` started, and wait for it."""
    if process.poll() is None:
        os.kill(process.pid, number)
    process.wait(WITHIN)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
