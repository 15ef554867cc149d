# SPDX-License-Identifier: Apache-2.0
"""How long whoever ends a call waits on each rung, for tests that say which one is needed: a busy machine makes none
further necessary."""

from __future__ import annotations

import pytest

from atoll.pool import escalation
from conditions import WITHIN

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
