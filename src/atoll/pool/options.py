# SPDX-License-Identifier: Apache-2.0
"""What a caller may ask for beside a timeout: retries, progress, and to be able to give the call up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .channel import Channel
    from .dispatcher import _Waiter
    from .escalation import Escalation


class CallOptions(NamedTuple):
    """Options of calls.

    Attributes:
        retries: how often to call again when a worker died; for functions marked as idempotent.
        on_progress: called with ``done, total, message`` on the waiting thread.
        cancellation: through which the call can be given up.
        writable: arrays of the result are the caller's own, to be written to.
    """

    retries: int = 0
    on_progress: Callable[[float, float | None, str | None], object] | None = None
    cancellation: Cancellation | None = None
    writable: bool = False


class Cancellation:
    """Lets another thread give up a call that is in progress.

    Attributes:
        requested: the call is to end.
        place: the one in the dispatcher's queue that was reserved for the call, until it is claimed.
        on_leave: called when the call was given up before it began.
    """

    def __init__(self) -> None:
        self.requested = False
        self.place: _Waiter | None = None
        self.on_leave: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._call_id = 0
        self._what = ""
        self._escalation: Escalation | None = None

    @property
    def rung(self) -> str | None:
        """What it took to end the call; see ``escalation``."""
        return None if self._escalation is None else self._escalation.rung

    def begins(self, channel: Channel, call_id: int, what: str) -> bool:
        """The call is about to be sent, with this id. False if it was given up before: then it must not be."""
        with self._lock:
            if self.requested:  # asked here: whoever gives it up after this finds the channel
                return False
            self._channel = channel
            self._call_id = call_id
            self._what = what
            return True

    def ends(self) -> None:
        """The call has ended."""
        with self._lock:
            self._channel = None
            escalation = self._escalation
        if escalation is not None:
            escalation.over()

    def cancel(self) -> None:
        """Have the call end. Does not wait. Idempotent."""
        from .escalation import Escalation

        with self._lock:
            self.requested = True
            if self._channel is not None and self._escalation is None:
                self._escalation = Escalation(self._channel, self._call_id, f"{self._what} was cancelled")
