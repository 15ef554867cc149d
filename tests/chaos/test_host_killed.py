# SPDX-License-Identifier: Apache-2.0
"""The host is killed at any moment of a busy life: no process, no memory and no folder of it is left.

The leak check of every test sees processes and descriptors that are left: orphans belong to the test process.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import atoll
from conditions import children_of, end, is_gone, start_python, state_of, until, until_gone
from sandboxes import needs_sandbox
from storm import SECONDS

HOST = """\
import asyncio, os, sys, threading
import atoll

options = {
    "started": {"memory": "500MB"},
    "forked": {"memory": "500MB", "preload": ["decimal"]},
    "shut in": {"sandbox": atoll.Sandbox()},
}
service = atoll.Service(sys.argv[1], workers=2, concurrency=2, health_interval=0.1, **options[sys.argv[2]],
                        restart=atoll.Restart(backoff=0, max_restarts=100000))

def again(what):
    number = 0
    while True:
        number += 1
        try:
            what(number)
        except atoll.AtollError:
            pass

def leave_early(number):
    for item in service.count(number, 1000):
        if item == number + 30:
            break

def give_up(number):
    call = service.spin.submit(number, 0.05)
    call.cancel()

async def many():
    async def one(number):
        while True:
            try:
                await service.answer_later.aio(number)
            except atoll.AtollError:
                pass
    await asyncio.gather(*(one(number) for number in range(4)))

for what in (
    service.answer,
    lambda number: service.ask_back(number, lambda one: one),
    leave_early,
    lambda number: service.total(iter(range(1000))),
    lambda number: list(service.answer_again.map(range(1000))),
    give_up,
    lambda number: service.die(number, "exit"),
    lambda number: service.reload(),
    lambda number: service.flood(number, 100),
    lambda number: service.breed(1, False),
):
    threading.Thread(target=again, args=(what,)).start()
print("busy", flush=True)
asyncio.run(many())
"""


def all_below(pid: int) -> list[int]:
    found = []
    for child in children_of(pid):
        found += [child, *all_below(child)]
    return found


@pytest.mark.stress
@pytest.mark.timeout(SECONDS + 150)
@pytest.mark.parametrize("workers", ["started", "forked", pytest.param("shut in", marks=needs_sandbox)])
def test_a_busy_host_killed_at_any_moment(oracle: Callable[..., atoll.Service], tmp_path: Path, workers: str) -> None:
    oracle()  # writes the service's file
    script = tmp_path / "host.py"
    script.write_text(HOST)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    moments = random.Random(7)
    for _ in range(max(5, round(20 * SECONDS / 30))):
        host = start_python(
            script,
            str(tmp_path / "oracle.py"),
            workers,
            env={**os.environ, "TMPDIR": str(temporary)},
            stderr=subprocess.DEVNULL,
        )
        assert host.stdout is not None
        assert host.stdout.readline() == "busy\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            host.wait(moments.uniform(0.001, 2.0))
        assert host.poll() is None
        started = all_below(host.pid)
        end(host, signal.SIGKILL)
        until_gone(*started)
        until(lambda: not children_of(os.getpid()), what="the end of all that the host started")
    assert [*temporary.iterdir()] == []


STOPPED = """\
import sys
import atoll

service = atoll.Service(sys.argv[1])
service.breed(3, False)
print(service.pid, flush=True)
sys.stdin.readline()
"""


def test_a_host_killed_before_it_sees_that_its_worker_ended(
    oracle: Callable[..., atoll.Service], tmp_path: Path
) -> None:
    oracle()
    script = tmp_path / "host.py"
    script.write_text(STOPPED)
    host = start_python(script, str(tmp_path / "oracle.py"), stdin=subprocess.PIPE)
    assert host.stdout is not None
    worker = int(host.stdout.readline())
    born = until(lambda: (found := all_below(worker)) and len(found) >= 9 and found)
    os.kill(host.pid, signal.SIGSTOP)
    until(lambda: state_of(host.pid) == "T")
    os.kill(worker, signal.SIGKILL)
    until_gone(worker)
    assert not any(is_gone(one) for one in born)
    end(host, signal.SIGKILL)
    until_gone(*born)
