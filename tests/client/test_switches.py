# SPDX-License-Identifier: Apache-2.0
"""With the fast lane off, with polling off, with both off: every call is the same, only slower."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll_worker.lane import SLOT_SIZE
from conditions import WITHIN, until


@pytest.fixture(params=["lane", "spin", "lane and spin"])
def echo(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> atoll.Function[..., Any]:
    """A function whose worker is started with some of its speed switched off."""
    for what in request.param.split(" and "):
        monkeypatch.setenv(f"ATOLL_{what.upper()}", "0")

    @atoll.function
    def echo(value, path=None, die=False):  # type: ignore[no-untyped-def]
        import os
        import time

        if die:
            os._exit(3)
        while path is not None and not os.path.exists(path):
            time.sleep(0.002)
        return value

    echo.start()
    return echo


def test_values_of_every_size(echo: atoll.Function[..., Any]) -> None:
    for size in [0, 1, 1000, 8192, SLOT_SIZE - 64, SLOT_SIZE, 10**6, 3, 10**7]:
        assert echo(bytes(size)) == bytes(size)
        assert echo("x" * size) == "x" * size
    assert [echo(number) for number in range(300)] == list(range(300))


def test_on_a_loop(echo: atoll.Function[..., Any]) -> None:
    async def main() -> None:
        assert await asyncio.gather(*(echo.aio(n) for n in range(100))) == list(range(100))
        assert await echo.aio(bytes(10**6)) == bytes(10**6)

    asyncio.run(main())


def test_from_threads(echo: atoll.Function[..., Any]) -> None:
    wrong: list[object] = []

    def call(base: int) -> None:
        wrong.extend(n for n in range(base, base + 100) if echo(n) != n)

    threads = [threading.Thread(target=call, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_errors_deaths_and_deadlines(echo: atoll.Function[..., Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        echo(1, nothing=2)
    with pytest.raises(atoll.WorkerDied, match="exited with code 3"):
        echo(1, die=True)
    with pytest.raises(atoll.CallTimeout):
        echo.options(timeout=0.1)(1, path=str(tmp_path / "never"))
    assert echo(2) == 2


def state_of_thread(thread: threading.Thread) -> str:
    """The state letter of a thread of this process as the kernel has it."""
    return Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_wake_after_a_long_sleep(echo: atoll.Function[..., Any], tmp_path: Path) -> None:
    """Both sides are asleep by then: the host waits for the answer, the worker before for the call."""
    go = tmp_path / "go"
    future = echo.submit(1, path=str(go))
    until(future.running)
    (waiting,) = [thread for thread in threading.enumerate() if thread.name == "atoll-submit"]
    until(lambda: state_of_thread(waiting) == "S")
    go.touch()
    assert future.result(WITHIN) == 1
    assert echo(2) == 2


def test_a_host_without_standard_descriptors(tmp_path: Path) -> None:
    """A daemon has closed all three; a worker's connections must not take their numbers."""
    program = tmp_path / "daemon.py"
    program.write_text(
        "import os\n"
        "for fd in (0, 1, 2):\n"
        "    os.close(fd)\n"
        "import atoll\n"
        "@atoll.function\n"
        "def next_number(number):\n"
        "    return number + 1\n"
        "with open('answer', 'w') as file:\n"
        "    file.write(str(next_number(41)))\n"
    )
    subprocess.run([sys.executable, str(program)], cwd=tmp_path, check=True, timeout=2 * WITHIN)
    assert (tmp_path / "answer").read_text() == "42"
