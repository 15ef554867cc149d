# SPDX-License-Identifier: Apache-2.0
"""When a call is late, for tests in which only one that waits for what never comes is to be: on a busy machine what is
answered at once may take longer than any deadline that a test would wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from atoll.pool import aio
from atoll_worker.connection import Connection

# Seconds between two looks.
_LOOK_AGAIN = 0.005


def pass_once(monkeypatch: pytest.MonkeyPatch, condition: Callable[[], object]) -> None:
    """From now on no call that has its turn is late before this holds, whatever its deadline.

    Args:
        condition: such as that the function has begun, by a file that it makes.
    """
    poll, wait = Connection._poll, aio._wait

    def poll_until(self: Connection, deadline: float | None, at_most_ms: int) -> bool:
        if deadline is None or condition():
            return poll(self, deadline, at_most_ms)
        return poll(self, None, min(at_most_ms, int(_LOOK_AGAIN * 1000)))

    async def wait_until(loop: Any, connection: Connection, add: Any, remove: Any, deadline: float | None) -> bool:
        if deadline is not None and not condition():
            deadline = time.monotonic() + _LOOK_AGAIN
        return await wait(loop, connection, add, remove, deadline)

    monkeypatch.setattr(Connection, "_poll", poll_until)
    monkeypatch.setattr(aio, "_wait", wait_until)
