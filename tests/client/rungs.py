# SPDX-License-Identifier: Apache-2.0
"""How long whoever ends a call waits on each rung, for tests that say which one is needed: a busy machine makes none
further necessary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from atoll.pool import escalation
from atoll.pool.worker import _ANSWER_GRACE, Worker
from conditions import WITHIN, until

# Seconds. An exception is asked for twice, since there are moments in which it cannot be raised.
_WAITS = {
    "cooperative": {"_COOPERATION": WITHIN},
    "exception": {"_CANCELLATION": 1.0, "_INTERRUPTION": WITHIN},
    "SIGTERM": {"_TERMINATION": WITHIN},
    "SIGKILL": {},
}
_USUAL = {name: getattr(escalation, name) for waits in _WAITS.values() for name in waits}

# For a program of its own, where the exception is needed and no more.
UNHURRIED = "import atoll.pool.escalation as ladder; ladder._INTERRUPTION = 3600.0"


def ends_at(monkeypatch: pytest.MonkeyPatch, rung: str) -> None:
    """Give this rung all the time it needs, and those before it the usual; where a worker is looked into, that too.

    Args:
        rung: the one that the test says is needed.
    """
    for name, wait in {**_USUAL, **_WAITS[rung]}.items():
        monkeypatch.setattr(escalation, name, wait)
    for name in ("_STACKS_GRACE", "_NATIVE_GRACE"):
        monkeypatch.setattr(f"atoll.pool.worker.{name}", WITHIN)
    # A worker that an exception will do for also says by itself where it is.
    answers = rung in ("cooperative", "exception")
    monkeypatch.setattr("atoll.pool.worker._ANSWER_GRACE", WITHIN if answers else _ANSWER_GRACE)


def not_before(monkeypatch: pytest.MonkeyPatch, condition: Callable[[], Any]) -> None:
    """Who ends a call looks where it is, and interrupts it, only once this is true: the call has come to where the test
    wants it by then, however little of the processor its worker got."""
    look = Worker.stacks

    def stacks(worker: Worker) -> str:
        until(condition)
        return look(worker)

    monkeypatch.setattr(Worker, "stacks", stacks)
