# SPDX-License-Identifier: Apache-2.0
"""Raising ``Cancelled`` in the thread that serves a call, in user code only.

On the main thread a signal does it: it also ends a system call that waits, and its handler runs on that very thread, so
what it looks at cannot change under it. On other threads the interpreter's own way is used, which raises at the next
line of Python and cannot wake a thread that waits.
"""

from __future__ import annotations

from _thread import allocate_lock

from .errors import Cancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, Protocol

    from .channel import Channel

    class CallInProgress(Protocol):
        """What is asked of who is served on the main thread; a ``Channel`` is one."""

        thread: int
        in_user_code: bool
        interrupted_call: int

        @property
        def call_number(self) -> int:
            """Number of the call in progress; 0 when there is none."""

        def concerns(self, call_id: int) -> bool:
            """Whether the call of this id is in progress."""

        def do_pending(self) -> None:
            """What was left to be done between calls."""


_FOLDER = __file__.rpartition("/")[0]
_NOT_HERE = tuple(f"{_FOLDER}/{name}.py" for name in ("outbox", "references", "logs", "wire", "cuda", "cuda_driver"))


def _signal_number() -> Optional[int]:
    """A realtime signal, which programs seldom use; None where there are none, or Python is not 3.9+ on a Unix."""
    import _signal  # type: ignore[import-not-found]  # `signal` would import `enum`

    if not hasattr(_signal, "pthread_kill"):
        return None
    number = getattr(_signal, "SIGRTMAX", None)
    return int(number - 2 if number is not None else _signal.SIGUSR2)


class MainThread:
    """For a channel that the main thread serves. Made on the main thread."""

    def __init__(self) -> None:
        import _signal

        self._channel: Optional[CallInProgress] = None
        self._number = _signal_number()
        self._kill: Callable[[int, int], object] = getattr(_signal, "pthread_kill", lambda thread, number: None)
        if self._number is not None:
            _signal.signal(self._number, self._handle)

    def serves(self, channel: CallInProgress) -> None:
        """The channel that the main thread serves from now on."""
        self._channel = channel

    def interrupt(self, channel: CallInProgress) -> None:
        """Raise ``Cancelled``, if the channel's thread is in user code of the call that ``interrupted_call`` names;
        else let it look whether there is something to do. From any thread."""
        if self._number is not None:
            self._kill(channel.thread, self._number)

    def settle(self, channel: CallInProgress) -> None:
        """After this no interruption comes late. Nothing is to be done: the handler looks before it raises."""

    def _handle(self, number: int, frame: Any) -> None:
        channel = self._channel
        if channel is None:
            return
        if not channel.in_user_code:
            if channel.call_number == 0:
                channel.do_pending()
        elif (
            channel.concerns(channel.interrupted_call)
            # A frame on the control connection must not be cut, nor a lock be left taken. The host asks again.
            and frame.f_code.co_filename not in _NOT_HERE
        ):
            channel.interrupted_call = 0
            raise Cancelled("the call was cancelled")


class OtherThread:
    """For a channel that a thread of its own serves."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._sent_to = 0

    def interrupt(self, channel: Channel) -> None:
        """As ``MainThread.interrupt``."""
        import ctypes

        with self._lock:
            # Said before looking: whoever leaves user code meanwhile sees it, and waits for this lock.
            channel.unsettled = True
            if channel.in_user_code and channel.concerns(channel.interrupted_call):
                channel.interrupted_call = 0
                self._sent_to = channel.thread
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(channel.thread), ctypes.py_object(Cancelled))

    def settle(self, channel: Channel) -> None:
        """After this no interruption comes late: one that was sent and has not struck yet is withdrawn."""
        with self._lock:
            channel.unsettled = False
            if self._sent_to:
                import ctypes

                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._sent_to), None)
                self._sent_to = 0
