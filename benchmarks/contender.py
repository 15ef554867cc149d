# SPDX-License-Identifier: Apache-2.0
"""A running contender, seen from the program that compares them: asks its host process for batches of
samples.

What always holds: every contender lives in a host process of its own, so that one's threads and settings
never touch another's; a contender that fails raises ``ContenderError`` with the peer's own words; closing
leaves no process behind. How the two sides talk is written at the top of ``host_process.py``.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.family import Watched, descendants

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 180.0
BATCH_SECONDS = 60.0
CLOSE_SECONDS = 15.0


class ContenderError(Exception):
    """A contender could not start, gave a wrong reply or did not answer in time; says what it said itself."""


class Measured(Protocol):
    """What the comparison needs of a contender: the floor is one, and every peer in its host process."""

    pid: int
    description: dict[str, Any]

    def run(self, count: int) -> Sequence[int]:
        """Makes ``count`` calls. Returns the nanoseconds of each."""

    def close(self) -> None:
        """Ends every process of the contender."""


class Contender:
    """A peer in its own host process."""

    def __init__(
        self,
        python: Path,
        peer: str,
        *,
        placement: str = "scheduler",
        environment: dict[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """Starts the host process and waits until the peer is open. Raises ContenderError when it cannot.

        ``environment`` is set on top of this process's variables; what the peer prints goes to ``log``.
        """
        self._buffer = b""
        self._log = log
        with open(log or os.devnull, "wb") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", "benchmarks.host_process", peer, placement],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.description: dict[str, Any] = {}
        try:
            self.description = self._receive(START_SECONDS)["description"]
        except BaseException:
            self._end(Watched([self.pid, *descendants(self.pid)]), grace=0.0)
            raise

    def run(self, count: int) -> Sequence[int]:
        """Makes ``count`` calls in the host process. Returns the nanoseconds of each."""
        self._send({"request": "run", "count": count})
        answer = self._receive(BATCH_SECONDS)
        samples = array("q")
        samples.frombytes(self._take(8 * answer["count"], time.monotonic() + BATCH_SECONDS))
        return samples

    def close(self) -> None:
        """Asks the peer to close, gives it a moment, and kills whatever of it is left."""
        family = Watched([self.pid, *descendants(self.pid)])
        grace = CLOSE_SECONDS
        try:
            self._send({"request": "close"})
            self._receive(CLOSE_SECONDS)
        except ContenderError:
            grace = 0.0  # it cannot close by itself; its figures were taken before
        self._end(family, grace)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ContenderError(f"the host process is gone ({error}); {self._last_words()}") from error

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            self._buffer += self._read_some(deadline)
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if self._log is not None:
                with self._log.open("a") as log:
                    log.write(answer["traceback"])
            raise ContenderError(answer["error"])
        return answer

    def _take(self, length: int, deadline: float) -> bytes:
        while len(self._buffer) < length:
            self._buffer += self._read_some(deadline)
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _read_some(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([descriptor], [], [], remaining)[0]:
            raise ContenderError(f"no answer in time; {self._last_words()}")
        got = os.read(descriptor, 1 << 20)
        if not got:
            raise ContenderError(f"the host process ended with {self._process.wait()}; {self._last_words()}")
        return got

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log else []
        return "last output: " + (" | ".join(lines[-3:]) or "none")

    def _end(self, family: Watched, grace: float) -> None:
        """Ends whatever is left of the host process and of those it started, and takes the exit code."""
        family.end(grace)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
