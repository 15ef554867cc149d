# SPDX-License-Identifier: Apache-2.0
"""Ending a call that its caller does not want any more, step by step.

The rungs, each only if the one before did not end the call in its time: **cooperative** (code that asks ``cancelled()``
is told), **exception** (``Cancelled`` is raised in the call's thread), **SIGTERM** to the worker, **SIGKILL** to it and
everything it started. After the first two the worker goes on serving. Whoever waits for the call goes on waiting, for
its answer or for the end of the worker; this only sees to it that one of the two comes.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from atoll_worker.wire import CALL_NUMBER

from ..processes import output_reader
from .lifecycle import Cause

if TYPE_CHECKING:
    from .channel import Channel

logger = logging.getLogger("atoll.pool")

COOPERATIVE = "cooperative"
EXCEPTION = "exception"
TERMINATED = "SIGTERM"
KILLED = "SIGKILL"

# Seconds until the next rung.
_COOPERATION = 0.5
_CANCELLATION = 0.3  # of a coroutine, until whatever it runs is interrupted
_INTERRUPTION = 0.3
_TERMINATION = 0.3


class Escalation:
    """Has the call in progress on a channel ended.

    Args:
        channel: where it is in progress.
        call_id: its id on the wire.
        why: what to say of it in the log, should the worker have to be killed.

    Attributes:
        rung: the last one that was needed.
        stacks: where the worker was before it was interrupted, and natively before it was killed; may be empty.
        interrupted: what interrupted the waiting for its end, such as a second Ctrl-C.
    """

    def __init__(self, channel: Channel, call_id: int, why: str) -> None:
        self.rung = COOPERATIVE
        self.stacks = ""
        self.interrupted: BaseException | None = None
        self._channel = channel
        self._call_id = call_id
        self._why = why
        self._was_told = False
        self._hurried = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atoll-escalation", daemon=True)
        self._thread.start()

    def over(self) -> None:
        """The call has ended, or the worker has."""
        self._hurried.set()
        self._thread.join(10.0)
        if self._was_told and self._call_id > CALL_NUMBER:  # else its id is its own
            self._channel.worker.withdraw_cancel(self._channel, self._call_id)

    def hurry(self) -> None:
        """Take the last rung now."""
        self._hurried.set()
        self._channel.worker.end(Cause.CANCELLED, self._why)
        self.rung = KILLED

    def _has_begun(self) -> bool:
        """It is being sent, or was: before that there is nothing to end."""
        return self._channel.connection.conversation.call_id >= self._call_id or (
            self._channel.call_number > self._call_id & CALL_NUMBER
        )

    def _run(self) -> None:
        try:
            self._climb()
        except BaseException:
            # Looking where the worker is, or a log handler of the user's. Nobody must wait for ever because of it.
            if not self._hurried.is_set():
                self.hurry()
            raise

    def _climb(self) -> None:
        worker = self._channel.worker
        while not self._has_begun():
            if self._hurried.wait(0.001):
                return
        self._was_told = True
        if worker.cooperative:
            worker.cancel(self._channel, self._call_id, force=False)
            if self._hurried.wait(_COOPERATION):
                return
        self.stacks = worker.stacks()
        if self._hurried.is_set():
            return
        self.rung = EXCEPTION
        worker.cancel(self._channel, self._call_id, force=True)
        if self._hurried.wait(_CANCELLATION):
            return
        # A coroutine was cancelled at first; now whatever it runs is interrupted.
        worker.cancel(self._channel, self._call_id, force=True)
        if self._hurried.wait(_INTERRUPTION):
            return
        native = worker.native_stacks()
        if native:
            self.stacks = f"{self.stacks}\n{native}" if self.stacks else native
        if self._hurried.is_set():
            return
        self.rung = TERMINATED
        if worker.cause is None:
            worker.cause = Cause.CANCELLED
            worker.why = self._why
        # Handlers are the user's, and may block: not what ends a call.
        said = "%s; its worker (pid %d) is stopped. It was here:\n%s", self._why, worker.pid, self.stacks
        output_reader().post(lambda: logger.warning(*said))
        strays = worker.terminate()
        ended = self._hurried.wait(_TERMINATION)
        if strays is not None:
            strays.kill()
        if ended:
            return
        self.rung = KILLED
        worker.end(Cause.CANCELLED, self._why)
