# SPDX-License-Identifier: Apache-2.0
"""Finalizers run at any moment, on any thread: also on one that is just beginning, and that the warden waits for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
from conditions import WITHIN, until
from storm import TIRELESS

Oracle = Callable[..., atoll.Service]


def test_a_stream_that_is_dropped_on_the_thread_that_the_warden_starts(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The garbage collector may choose that moment: the warden must not have to do anything for the finalizer."""
    service = oracle(workers=1, **TIRELESS)
    streams: list[Any] = [service.count(1, 1000)]
    next(streams[0])
    worker = service._pool.workers[0]
    begun = tmp_path / "begun"
    busy = service.sleep.submit(1, 600, str(begun))
    until(begun.exists)  # one that its worker has not taken yet would be made again
    begin = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]
    dropped: list[str] = []

    def drop_and_begin(thread: threading.Thread) -> None:
        if thread.name == "atoll-start" and streams:
            until(lambda: worker.spare)  # the call has ended, and so the worker could be closed
            streams.clear()
            dropped.append(thread.name)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "_bootstrap_inner", drop_and_begin)
    os.kill(worker.pid, signal.SIGKILL)
    assert isinstance(busy.exception(WITHIN), atoll.WorkerDied)
    until(lambda: dropped)
    assert service.answer.submit(5).result(WITHIN) == (5, b"")
