# SPDX-License-Identifier: Apache-2.0
"""Listening while a call lasts: a thread that is asleep but for calls of more than a moment.

What always holds here: it costs a short call nothing but a look whether it is asleep. What does not belong here: what
is heard (``pyproc_connections``), and how a call is ended (``pyproc_call``).
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType

    from .pyproc_call import Call
    from .pyproc_connections import Connections

# Seconds after which a call is one that the ear attends to, and between its looks whether it lasts.
_TICK = 0.02
# Seconds between the ear's looks whether a call lasts that has lasted for some time.
_LONGEST_WAIT = 0.2


class Ear:
    """Attends to all connections while the main thread is in a call.

    Args:
        call: the one in progress.
        connections: who may have something to say.
        turn: whoever has it touches connections; the main thread has it but for its calls.

    Attributes:
        is_asleep: it is to be woken when a call begins.
    """

    def __init__(self, call: Call, connections: Connections, turn: LockType) -> None:
        self._call = call
        self._connections = connections
        self._turn = turn
        self.is_asleep = False
        self._is_closed = False
        self._bell = allocate_lock()
        self._bell.acquire()

    def start(self) -> None:
        """Listen from now on."""
        start_new_thread(self._listen, ())

    def wake(self) -> None:
        """A call begins."""
        self.is_asleep = False
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it was rung a moment ago

    def close(self) -> None:
        """Listen no more."""
        self._is_closed = True
        if self.is_asleep:
            self.wake()

    def _listen(self) -> None:
        """Wakes some times a second while there are calls, and sees whether the same one is still there."""
        import _signal  # type: ignore[import-not-found]

        # They are for the main thread, which they are to wake.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        call = self._call
        seen = 0
        while not self._is_closed:
            number = call.call_number
            if number and number == seen:
                self._listen_during(number)
            elif not number and call.last_number == seen:
                self.is_asleep = True
                if call.call_number == 0:
                    self._bell.acquire()
                    continue
                self.is_asleep = False
            seen = number or call.last_number
            self._bell.acquire(timeout=_TICK)

    def _listen_during(self, number: int) -> None:
        call = self._call
        wait = _TICK
        while call.call_number == number and not self._is_closed:
            events = self._connections.poll(wait)
            with self._turn:
                if call.call_number != number:
                    return
                try:
                    for fd, event in events:
                        self._connections.handle(fd, event, True)
                except Exception:
                    sys.excepthook(*sys.exc_info())  # the next event is listened to all the same
                wait = min(2 * wait, _LONGEST_WAIT)
                if call.cancelled_call == number:
                    wait = _TICK
                    call.interrupt_if_due()
