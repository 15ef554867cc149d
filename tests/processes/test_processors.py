# SPDX-License-Identifier: Apache-2.0
"""Moving a worker to another processor changes where it runs, never where it may run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from atoll.processes import processors
from atoll.processes.processors import Mover
from conditions import WITHIN


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one processor to use")
def test_a_move_leads_to_another_processor_and_leaves_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_runnable", lambda: 1)
    clock = SimpleNamespace(monotonic=lambda: 1000.0)  # however long it takes, the second look comes too soon
    monkeypatch.setattr(processors, "time", clock)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            allowed = os.sched_getaffinity(busy.pid)
            masks: list[set[int]] = []
            real = os.sched_setaffinity
            monkeypatch.setattr(
                os, "sched_setaffinity", lambda pid, mask: (masks.append(set(mask)), real(pid, mask))[1]
            )
            mover = Mover(busy.pid)
            mover()
            assert len(masks) == 2
            assert len(masks[0]) == len(allowed) - 1
            assert masks[1] == allowed == os.sched_getaffinity(busy.pid)
            mover()
            assert len(masks) == 2, "a second move so soon"
        finally:
            busy.kill()


def test_a_move_that_another_thread_begins_in_the_middle_of_one_leaves_the_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It must not take for the worker's mask what that is during a move."""
    monkeypatch.setattr(processors, "_runnable", lambda: 1)
    monkeypatch.setattr(processors, "_processor", lambda pid: 0)
    times = itertools.count(1000)  # far apart: neither comes too soon
    monkeypatch.setattr(processors, "time", SimpleNamespace(monotonic=lambda: float(next(times))))
    everywhere = {0, 1, 2, 3}
    mask, seen, restored = set(everywhere), threading.Event(), threading.Event()
    mover = Mover(0)

    def second_move() -> None:
        mover()
        seen.set()  # also where it did nothing

    second = threading.Thread(target=second_move)

    def get(pid: int) -> set[int]:
        found = set(mask)
        if threading.current_thread() is second:
            seen.set()
            assert restored.wait(WITHIN)
        return found

    def put(pid: int, wanted: set[int]) -> None:
        nonlocal mask
        mask = set(wanted)
        if threading.current_thread() is not second:
            if wanted == everywhere:
                restored.set()
            else:
                second.start()
                assert seen.wait(WITHIN)

    monkeypatch.setattr(os, "sched_getaffinity", get)
    monkeypatch.setattr(os, "sched_setaffinity", put)
    mover()
    second.join()
    assert mask == everywhere


def test_nothing_is_moved_to_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_runnable", lambda: 10_000)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, mask: pytest.fail("moved"))
    Mover(os.getpid())()


def test_a_worker_that_has_ended_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
        Mover(ended.pid)()
