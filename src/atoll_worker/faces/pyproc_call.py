# SPDX-License-Identifier: Apache-2.0
"""The one call in progress of a worker under pyproc's wire, and ending it.

What always holds here: a call is interrupted in user code only, and no call but the one that was meant. What does not
belong here: whose call it is, and what is said to whom (``pyproc_connections``).
"""

from __future__ import annotations

from _thread import get_ident
from time import monotonic

from .. import used_names
from ..errors import Cancelled
from ..interruption import MainThread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Seconds that code which looks whether it was cancelled gets to return by itself; and between interruptions of code
# that goes on.
_GRACE = 0.5


class Stop(KeyboardInterrupt):
    """The worker was told to end."""


class Call:
    """The one call in progress: what ``interruption`` and ``context`` ask for of a channel. Made on the main thread.

    Attributes:
        call_number: counts calls; 0 between them.
        last_number: of the last call that began.
        connection: whose it is.
        request_id: of its request.
        reason: why it was cancelled.
    """

    def __init__(self) -> None:
        self.thread = get_ident()
        self.index = 0
        self.meta = None
        self.deadline = 0.0  # the wire has none
        self.call_number = 0
        self.last_number = 0
        self.in_user_code = False
        self.unsettled = False
        self.interrupted_call = 0
        self.cancelled_call = 0
        self.task: Any = None
        self.connection: Any = None
        self.request_id: Any = None
        self.reason = ""
        self._cancelled_task = 0  # number of the call whose task was cancelled
        self._interrupt_at = 0.0
        self._grace = _GRACE if "cancelled" in used_names else 0.0
        self._interruption = MainThread()
        self._interruption.serves(self)

    def concerns(self, number: int) -> bool:
        """Whether the call of this number is in progress."""
        return 0 < number == self.call_number

    def do_pending(self) -> None:
        """Nothing is left for between calls."""

    def on_task(self, task: Any) -> Any:
        """The task that runs for the call from now on; returns the one before."""
        before, self.task = self.task, task
        return before

    def cancel(self, reason: str) -> bool:
        """Nobody waits for it any longer: it is to end. Returns whether that is news."""
        if self.cancelled_call == self.call_number:
            return False
        self.reason = reason
        self.cancelled_call = self.call_number
        self._interrupt_at = monotonic() + self._grace
        return True

    def is_cancelled_by(self, error: BaseException) -> bool:
        """Whether the last call raised this because it was cancelled."""
        is_cancellation = isinstance(error, Cancelled) or type(error).__name__ == "CancelledError"
        return is_cancellation and self.cancelled_call == self.last_number

    def interrupt_if_due(self) -> None:
        """End the call, which was cancelled: its coroutine at first, from then on whatever runs."""
        if monotonic() < self._interrupt_at:
            return
        self._interrupt_at = monotonic() + _GRACE
        task = self.task
        if task is not None and self.cancelled_call != self._cancelled_task:
            self._cancelled_task = self.cancelled_call
            try:
                task.get_loop().call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass  # the loop is closed
            return
        self.interrupted_call = self.cancelled_call
        self._interruption.interrupt(self)
