# SPDX-License-Identifier: Apache-2.0
"""For the tests of what users hold: writing a service's file, listening to what workers print, event loops."""

from __future__ import annotations

import asyncio
import logging
import textwrap
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool.pool import Pool
from client.rungs import ends_at
from conditions import WITHIN


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file below ``tmp_path``, its text dedented."""

    def write_file(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    return write_file


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What interrupts a call is given all the time it needs: a busy machine costs no worker."""
    ends_at(monkeypatch, "exception")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a worker ended, and what it said last, is waited for until it is known, on however busy a machine."""
    monkeypatch.setattr("atoll.pool.worker._END_GRACE", WITHIN)
    monkeypatch.setattr("atoll.processes.process._LAST_WORDS", WITHIN)


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch, known: None) -> None:
    """Workers that are let go have all the time they need to tear down and to say their last."""
    monkeypatch.setattr("atoll.pool.supervisor.STOP_GRACE", WITHIN)
    for close in (Pool.close, atoll.shutdown):
        monkeypatch.setattr(close, "__defaults__", (WITHIN,))


class Records(logging.Handler):
    """Every record that a logger got."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, stream: str | None = None) -> list[str]:
        """The messages, of one stream if given."""
        return [
            record.getMessage()
            for record in list(self.records)
            if stream is None or record.stream == stream  # type: ignore[attr-defined]
        ]


@pytest.fixture
def printed() -> Iterator[Records]:
    """What workers print during a test."""
    handler = Records()
    logger = logging.getLogger("atoll.worker")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def loops() -> list[Any]:
    found = [pytest.param(asyncio.new_event_loop, id="asyncio")]
    try:
        import uvloop
    except ImportError:
        found.append(pytest.param(None, id="uvloop", marks=pytest.mark.skip("uvloop is not installed")))
    else:
        # Once per process libuv makes a pipe for signals and keeps it.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.sleep(0))
        found.append(pytest.param(uvloop.new_event_loop, id="uvloop"))
    return found


@pytest.fixture(params=loops())
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """As ``asyncio.run``, on each kind of loop."""

    def run_on_loop(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(main, 60))

    return run_on_loop
