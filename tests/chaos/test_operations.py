# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to a pool, in whatever order: answers are right, and it does what it is asked next."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import atoll
from storm import PATIENCE, SECONDS, TIRELESS, ready_pids

SERVICE = """\
    import time
    from atoll_worker import expose

    @expose
    def answer(question):
        return question

    @expose
    def sleep(question, seconds):
        time.sleep(seconds)
        return question

    @expose
    def count(question):
        for number in range(500):
            yield question + number

    @expose
    def ask_back(question, function):
        return function(question)
"""


class Operations(RuleBasedStateMachine):
    """A pool, what is under way in it, and what may be expected of it."""

    file: Path

    @initialize(workers=st.integers(1, 2), concurrency=st.sampled_from([1, 1, 3]))
    def begin(self, workers: int, concurrency: int) -> None:
        self.service = atoll.Service(self.file, workers=workers, concurrency=concurrency, timeout=60, **TIRELESS)
        self.question = 0
        self.calls: list[tuple[int, Any]] = []
        self.streams: list[tuple[int, Any, int]] = []
        self.harmed = False  # somebody was killed since the calls under way began
        self.closed = False

    def ask(self) -> int:
        self.question += 1000
        return self.question

    def may_die(self) -> Any:
        """A worker that was killed a moment ago may still be the one that is called."""
        return contextlib.suppress(atoll.WorkerDied) if self.harmed else contextlib.nullcontext()

    @precondition(lambda self: not self.closed)
    @rule()
    def call(self) -> None:
        question = self.ask()
        with self.may_die():
            assert self.service.answer(question) == question

    @precondition(lambda self: not self.closed)
    @rule()
    def call_back(self) -> None:
        question = self.ask()
        with self.may_die():
            assert self.service.ask_back(question, lambda one: self.service.answer(one + 1)) == question + 1

    @precondition(lambda self: not self.closed and len(self.calls) < 4)
    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1]))
    def submit(self, seconds: float) -> None:
        question = self.ask()
        self.calls.append((question, self.service.sleep.submit(question, seconds)))

    @precondition(lambda self: self.calls)
    @rule(index=st.integers(0, 3), cancel=st.booleans())
    def finish(self, index: int, cancel: bool) -> None:
        question, call = self.calls.pop(index % len(self.calls))
        if cancel:
            call.cancel()
        allowed: tuple[type[BaseException], ...] = (atoll.CallCancelled, CancelledError) if cancel else ()
        if self.harmed:
            allowed += (atoll.WorkerDied,)
        if self.closed:
            allowed += (atoll.ServiceClosed,)
        with contextlib.suppress(*allowed):
            assert call.result(PATIENCE) == question

    # How many streams there are depends on who was killed when; what Hypothesis draws must not.
    @precondition(lambda self: not self.closed)
    @rule()
    def open_stream(self) -> None:
        if len(self.streams) >= 3:
            return
        question = self.ask()
        with self.may_die():
            self.streams.append((question, iter(self.service.count(question)), 0))

    @precondition(lambda self: not self.closed)
    @rule(index=st.integers(0, 2), items=st.sampled_from([1, 10, 600]))
    def read_stream(self, index: int, items: int) -> None:
        if not self.streams:
            return
        question, stream, taken = self.streams.pop(index % len(self.streams))
        try:
            for item in stream:
                assert item == question + taken
                taken += 1
                items -= 1
                if not items:
                    self.streams.append((question, stream, taken))
                    return
            assert taken == 500
        except atoll.WorkerDied:
            assert self.harmed

    @rule(index=st.integers(0, 2))
    def drop_stream(self, index: int) -> None:
        if not self.streams:
            return
        del self.streams[index % len(self.streams)]

    @precondition(lambda self: not self.closed)
    @rule()
    def kill(self) -> None:
        for pid in ready_pids(self.service)[:1]:
            self.harmed = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @precondition(lambda self: not self.closed)
    @rule(bounds=st.sampled_from([(0, 1), (1, 1), (0, 3), (2, 2), (1, 2)]), idle=st.sampled_from([0.01, 60.0]))
    def scale(self, bounds: tuple[int, int], idle: float) -> None:
        self.service.scale(*bounds, idle=idle)

    @precondition(lambda self: not self.closed)
    @rule()
    def reload(self) -> None:
        with self.may_die():
            self.service.reload(PATIENCE)

    @precondition(lambda self: not self.closed)
    @rule()
    def start(self) -> None:
        with self.may_die():
            self.service.start()

    @rule()
    def close(self) -> None:
        self.service.close()
        self.closed = True
        with pytest.raises(atoll.ServiceClosed):
            self.service.answer(1)

    @invariant()
    def can_be_looked_at(self) -> None:
        status = self.service.status()
        assert status.queue >= 0
        assert len(status.workers) <= 12
        assert str(status)

    def teardown(self) -> None:
        if not hasattr(self, "service"):
            return
        try:
            if not self.closed:
                with contextlib.suppress(*((atoll.WorkerDied,) if self.harmed else ())):
                    assert self.service.answer(7) == 7
        finally:
            self.streams.clear()
            self.service.close()
            for _, call in self.calls:  # each has an end, whatever it is
                with contextlib.suppress(CancelledError):
                    call.exception(PATIENCE)


@pytest.mark.stress
@pytest.mark.timeout(SECONDS * 8 + 120)
def test_operations_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "service.py"
    file.write_text(textwrap.dedent(SERVICE))
    machine = type("OperationsOfFile", (Operations,), {"file": file})
    case = machine.TestCase  # type: ignore[attr-defined]
    case.settings = settings(
        max_examples=max(3, round(SECONDS)),
        stateful_step_count=20,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # making what fails smaller outlasts the test's time
        suppress_health_check=list(HealthCheck),
    )
    case("runTest").runTest()
