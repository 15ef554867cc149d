# SPDX-License-Identifier: Apache-2.0
"""What workers print: every line goes to ``logging`` under ``atoll.worker.<service>``, and the last ones are kept.

The lines come through pipes that are the workers' standard output and error, so nothing that is printed, by Python, C
or a child process, can get in the way of a call. One thread reads all pipes. It calls log handlers, which are the
user's and may block; then workers that print much wait, and nothing else does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

# Lines kept per stream for error messages.
KEPT_LINES = 40
# Frames kept of the stack that faulthandler writes when C code crashes; it begins with the innermost.
KEPT_FRAMES = 24
# A line is cut after this many bytes: a program may print without ever ending a line.
LONGEST_LINE = 1 << 16
# Bytes of a stream that are still read when nobody will read on: more than a pipe holds.
_REST = 1 << 20
# Functions that wait for the thread, and of these so many are run before it looks at the pipes again.
MOST_POSTED = 10_000
_POSTED_AT_ONCE = 500

_LEVELS = {"stdout": logging.INFO, "stderr": logging.WARNING}


class Stream:
    """One pipe of one worker."""

    def __init__(self, fd: int, service: str, pid: int, name: str) -> None:
        self.fd = fd
        # The last lines, each with the time it arrived, in seconds since the epoch.
        self.last: deque[tuple[float, str]] = deque(maxlen=KEPT_LINES)
        self.ended = threading.Event()
        self._logger = logging.getLogger(f"atoll.worker.{service}")
        self._extra = {"service": service, "worker_pid": pid, "stream": name}
        self._level = _LEVELS[name]
        self._rest = b""
        self._crash_frames: int | None = None  # seen of a crash's stack that is being written

    @property
    def last_lines(self) -> list[str]:
        """The last lines, oldest first."""
        return [text for _, text in self.last.copy()]

    def read(self) -> bool:
        """Read once and log complete lines; False at the end of the stream."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self._take_in(data)
        return bool(data)

    def read_rest(self) -> None:
        """Read and log what is there, also a line without an end: nobody will read on."""
        left = _REST
        while left > 0:
            try:
                data = os.read(self.fd, min(left, 1 << 16))
            except OSError:
                break
            if not data:
                break
            self._take_in(data)
            left -= len(data)
        self._take_in(b"")

    def _take_in(self, data: bytes) -> None:
        """Log complete lines; at the end, where there is no data, the last one too."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) > LONGEST_LINE):
            lines.append(self._rest)
            self._rest = b""
        texts = [line.decode("utf-8", "backslashreplace").rstrip("\r") for line in lines]
        now = time.time()
        # Before any handler, which may take its time.
        self.last.extend((now, text) for text in texts if self._is_kept(text))
        for text in texts:
            # A handler or filter of the user's that raises: that is between the two of them.
            with contextlib.suppress(Exception):
                self._logger.log(self._level, "%s", text, extra=self._extra)

    def _is_kept(self, text: str) -> bool:
        """Whether a line is one for error messages: not the outer frames of a crash, which would push the inner ones
        out, and what was printed before."""
        if text.startswith("Fatal Python error: "):
            self._crash_frames = 0
        elif self._crash_frames is not None:
            if text.startswith('  File "'):
                self._crash_frames += 1
                return self._crash_frames <= KEPT_FRAMES
            if text and not text.startswith(("Stack ", "Current thread ", "Thread ", "  ")):
                self._crash_frames = None
        return True


class OutputReader:
    """The thread that reads all streams. Use the one that ``output_reader()`` returns."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._streams: dict[int, Stream] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._poll.register(self._wake_read, select.POLLIN)
        self._added: deque[Stream] = deque()
        self._dropped: deque[Stream] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._refused = 0
        self._refused_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="atoll-output", daemon=True)
        self._thread.start()

    def add(self, stream: Stream) -> None:
        """Begin to read a stream; its descriptor belongs to the reader from now on."""
        self._added.append(stream)
        self._wake()

    def drop(self, stream: Stream) -> None:
        """Stop reading a stream that may never end, because a stray process still holds it."""
        self._dropped.append(stream)
        self._wake()

    def post(self, function: Callable[[], None]) -> bool:
        """Run a function, which calls log handlers, on the thread, after those posted before; never waits.

        Returns:
            False if it will not be run, because ``MOST_POSTED`` others wait. How many were not is logged then.
        """
        if len(self._posted) >= MOST_POSTED:
            with self._refused_lock:
                self._refused += 1
            return False
        self._posted.append(function)
        self._wake()
        return True

    def always(self, function: Callable[[], None]) -> None:
        """As ``post``, for what must not be dropped: letting go of what a worker gave back."""
        self._posted.append(function)
        self._wake()

    def finish(self, within: float) -> None:
        """Wait until all that was printed and posted by now is in the log. So many seconds at most: log handlers may
        block."""
        done = threading.Event()

        def read_all() -> None:
            try:
                for stream in self._streams.values():
                    stream.read_rest()
            finally:
                done.set()

        self.always(read_all)
        done.wait(within)

    def _run_posted(self) -> None:
        for _ in range(min(len(self._posted), _POSTED_AT_ONCE)):
            with contextlib.suppress(Exception):
                self._posted.popleft()()
        if self._posted:
            self._wake()
        elif self._refused:
            with self._refused_lock:
                refused, self._refused = self._refused, 0
            with contextlib.suppress(Exception):
                logging.getLogger("atoll.worker").warning(
                    "%d log records of workers were dropped: this process's log handlers did not keep up", refused
                )

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def _run(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._wake_read:
                    os.read(fd, 4096)
                elif fd in self._streams and not self._streams[fd].read():
                    self._end(self._streams[fd])
            while self._added:
                stream = self._added.popleft()
                os.set_blocking(stream.fd, False)
                self._streams[stream.fd] = stream
                self._poll.register(stream.fd, select.POLLIN)
            while self._dropped:
                stream = self._dropped.popleft()
                if self._streams.get(stream.fd) is stream:
                    stream.read_rest()  # the thread may come to it only now
                    self._end(stream)
            self._run_posted()

    def _end(self, stream: Stream) -> None:
        del self._streams[stream.fd]
        self._poll.unregister(stream.fd)
        os.close(stream.fd)
        stream.ended.set()

    def forget(self) -> None:
        """In a forked child: let go of the parent's descriptors."""
        for fd in (self._wake_read, self._wake_write, *self._streams):
            with contextlib.suppress(OSError):
                os.close(fd)


_reader: OutputReader | None = None
_lock = threading.Lock()


def output_reader() -> OutputReader:
    """The output reader of this process, started if need be."""
    global _reader
    if _reader is not None:  # without the lock, which a finalizer may find taken by its own thread
        return _reader
    with _lock:
        if _reader is None:
            _reader = OutputReader()
        return _reader


def finish_output(within: float) -> None:
    """As ``OutputReader.finish``; nothing to be done where no worker was started."""
    if _reader is not None:
        _reader.finish(within)


def _after_fork() -> None:
    global _reader, _lock
    _lock = threading.Lock()
    if _reader is not None:
        _reader.forget()
        _reader = None


os.register_at_fork(after_in_child=_after_fork)
