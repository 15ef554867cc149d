# SPDX-License-Identifier: Apache-2.0
"""Arrays are passed, kept, dropped, and their holders killed, in any order: nobody's data ever changes, and in the end
everything is given back, on both sides."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import atoll
from atoll_worker.segments import size_class
from conditions import WITHIN, until
from segment_counts import segment_descriptors, until_given_back
from storm import SECONDS, TIRELESS, ready_pids

MB = 1 << 20
# Inside the payload, in a shared segment, in one of its own, and large; not multiples of anything.
SIZES = [0, 100, 32767, 70_001, 262_145, MB, 3 * MB + 5]
# Bytes of shared memory that one rule needs at most: `map`, all of whose arrays are of the largest size.
MOST_MAPPED = 6
ROOM = MOST_MAPPED * size_class(max(SIZES))
# Ledgers: what each side wrote down of its loans.
LEDGERS = 2

sizes = st.sampled_from(SIZES)
indexes = st.integers(0, 7)


def checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array))


class Lives(RuleBasedStateMachine):
    """Two services, what this process holds and what their workers do, and what it must be."""

    file: Path
    everyone: Callable[..., list[Any]]

    @initialize(workers=st.integers(1, 2), budget=st.sampled_from([None, None, 48 * MB]))
    def begin(self, workers: int, budget: int | None) -> None:
        self.workers = workers
        options: dict[str, Any] = {"timeout": 60, **TIRELESS}
        self.service = atoll.Service(self.file, workers=workers, **options)
        self.other = atoll.Service(self.file, name="other", **options)
        if budget is not None:
            atoll.set_memory_budget(budget)
        self.random = np.random.default_rng(len(SIZES))
        self.held: list[tuple[Any, int]] = []  # arrays and what their checksums must be
        self.kept: dict[int, dict[str, int]] = {}  # by worker and name
        self.calls: list[tuple[Any, Any]] = []
        self.streams: list[tuple[Any, int]] = []
        self.harmed = False
        self.cancelling: list[bool] = []  # one for each call that was cancelled, and has not ended yet
        self.names = 0

    @contextlib.contextmanager
    def may_die(self) -> Iterator[None]:
        try:
            yield
        except atoll.WorkerDied:
            until(lambda: self.harmed or not self.cancelling)
            if not self.harmed:
                raise

    def cancel(self, call: Any) -> bool:
        """Cancel a call. If its worker gets no processor for a while, it is ended with the call."""

        def note(ended: Any) -> None:
            with contextlib.suppress(CancelledError):  # it had not begun
                if getattr(ended.exception(), "rung", None) in ("SIGTERM", "SIGKILL"):
                    self.harmed = True
            self.cancelling.pop()

        if not call.cancel():
            return False
        self.cancelling.append(True)
        call.add_done_callback(note)
        return True

    def new(self, size: int, shared: bool) -> tuple[Any, int]:
        array = self.random.integers(0, 255, size, "u1")
        if shared:
            array = atoll.asarray(array)
        return array, checksum(array)

    def hold(self, array: Any, expected: int) -> None:
        assert checksum(array) == expected
        self.held.append((array, expected))
        del self.held[:-8]

    def some(self, index: int, size: int) -> tuple[Any, int]:
        """Something that is held, or something new."""
        return self.held[index % len(self.held)] if self.held else self.new(size, False)

    # -- passing, keeping, dropping --------------------------------------------------------------------------

    @rule(size=sizes, shared=st.booleans(), hold=st.booleans())
    def pass_new(self, size: int, shared: bool, hold: bool) -> None:
        array, expected = self.new(size, shared)
        with self.may_die():
            assert self.service.checksum(array) == expected
        if hold:
            self.hold(array, expected)

    @rule(index=indexes, size=sizes, to_other=st.booleans())
    def pass_held(self, index: int, size: int, to_other: bool) -> None:
        array, expected = self.some(index, size)
        with self.may_die():
            assert (self.other if to_other else self.service).checksum(array) == expected

    @rule(index=indexes, size=sizes)
    def written_over_in_the_worker(self, index: int, size: int) -> None:
        array, expected = self.some(index, size)
        with self.may_die():
            assert self.service.scribble(array) == expected

    @rule(index=indexes, size=sizes, to_other=st.booleans())
    def keep(self, index: int, size: int, to_other: bool) -> None:
        array, expected = self.some(index, size)
        self.names += 1
        name = f"name {self.names}"
        with self.may_die():
            pid = (self.other if to_other else self.service).keep(name, array)
            self.kept.setdefault(pid, {})[name] = expected

    @rule(to_other=st.booleans())
    def check_kept(self, to_other: bool) -> None:
        with self.may_die():
            pid, kept = (self.other if to_other else self.service).what_is_kept()
            assert kept == self.kept.get(pid, {})

    # What is held, kept or open depends on who was killed when; what Hypothesis draws must not: hence no preconditions.

    @rule(index=indexes, to_other=st.booleans())
    def drop_kept(self, index: int, to_other: bool) -> None:
        names = sorted({name for kept in self.kept.values() for name in kept})
        if not names:
            return
        name = names[index % len(names)]
        with self.may_die():
            pid = (self.other if to_other else self.service).drop(name)
            self.kept.get(pid, {}).pop(name, None)

    @rule(size=sizes, shared=st.booleans(), writable=st.booleans())
    def make(self, size: int, shared: bool, writable: bool) -> None:
        with self.may_die():
            function = self.service.make_shared if shared and size else self.service.make
            array = function.options(writable=writable)(size, self.names)
            expected = checksum(np.random.default_rng(self.names).integers(0, 255, size, "u1"))
            self.hold(array, expected)

    @rule(index=indexes, size=sizes)
    def echo(self, index: int, size: int) -> None:
        array, expected = self.some(index, size)
        with self.may_die():
            self.hold(self.service.echo(array), expected)

    @rule(index=indexes, size=sizes)
    def chain(self, index: int, size: int) -> None:
        array, _ = self.some(index, size)
        with self.may_die():
            self.hold(self.other.invert(self.service.invert(array)), checksum(array))

    @rule(index=indexes)
    def hold_a_view(self, index: int) -> None:
        if self.held:
            array, _ = self.held.pop(index % len(self.held))
            view = array[3:-3:2]
            self.hold(view, checksum(view))

    @rule(index=indexes)
    def force_and_write(self, index: int) -> None:
        """What was received, and is forced to be writable, is written to: nobody else ever sees it. Not what is
        writable anyway: that may be memory of this process that others were lent, and who keep it see what is written.
        """
        if not self.held:
            return
        array, expected = self.held.pop(index % len(self.held))
        if not array.flags.writeable:
            with contextlib.suppress(ValueError):  # what has few bytes lies in some that nobody may write to
                array.flags.writeable = True
                array[...] = 99
            expected = checksum(array)
        self.hold(array, expected)

    @rule(index=indexes)
    def let_go(self, index: int) -> None:
        if self.held:
            del self.held[index % len(self.held)]

    # -- other ways across -----------------------------------------------------------------------------------

    @rule(index=indexes, size=sizes.filter(bool), shared=st.booleans())
    def out(self, index: int, size: int, shared: bool) -> None:
        array, _ = self.new(size, False)
        out = atoll.empty(size, "u1") if shared else np.empty(size, "u1")
        with self.may_die():
            self.service.invert(array, out=out)
            self.hold(out, checksum(255 - array))

    @precondition(lambda self: len(self.calls) < 4)
    @rule(index=indexes, size=sizes)
    def submit(self, index: int, size: int) -> None:
        array, expected = self.some(index, size)
        self.calls.append((self.service.echo.submit(array), expected))

    @precondition(lambda self: self.calls)
    @rule(index=indexes, hold=st.booleans(), cancel=st.booleans())
    def finish(self, index: int, hold: bool, cancel: bool) -> None:
        call, expected = self.calls.pop(index % len(self.calls))
        if cancel and self.cancel(call):
            return
        allowed: tuple[type[BaseException], ...] = (atoll.CallCancelled,) if cancel else ()
        with contextlib.suppress(*allowed), self.may_die():
            result = call.result(WITHIN)
            assert checksum(result) == expected
            if hold:
                self.hold(result, expected)

    @rule(size=sizes, count=st.sampled_from([1, 5, 30]))
    def open_stream(self, size: int, count: int) -> None:
        if len(self.streams) >= 2:
            return
        with self.may_die():
            self.streams.append((self.service.stream(size, count), size))

    @rule(index=indexes, hold=st.booleans())
    def read_stream(self, index: int, hold: bool) -> None:
        if not self.streams:
            return
        stream, size = self.streams[index % len(self.streams)]
        item = None
        with self.may_die():
            item = next(stream, None)
        if item is None:
            self.streams.remove((stream, size))
            return
        assert item.size == size
        if hold:
            self.hold(item, checksum(item))

    @rule(index=indexes)
    def abandon_stream(self, index: int) -> None:
        if self.streams:
            del self.streams[index % len(self.streams)]

    @rule(index=indexes, size=sizes, keep=st.booleans())
    def call_back(self, index: int, size: int, keep: bool) -> None:
        array, expected = self.some(index, size)
        seen = []

        def function(x: Any) -> Any:
            assert checksum(x) == expected
            if keep:
                seen.append(x)
            return 255 - x

        with self.may_die():
            inverted = 255 - array
            assert checksum(self.service.call_back(function, array)) == checksum(inverted)
        for x in seen:
            self.hold(x, expected)

    @rule(size=sizes, count=st.integers(1, MOST_MAPPED))
    def map(self, size: int, count: int) -> None:
        arrays = [self.new(size, number % 2 == 1)[0] for number in range(count)]
        with self.may_die():
            for result, array in zip(self.service.invert.map(arrays), arrays, strict=True):
                assert checksum(result) == checksum(255 - array)

    @rule(index=indexes, size=sizes)
    def fail(self, index: int, size: int) -> None:
        array, _ = self.some(index, size)
        with self.may_die(), pytest.raises(ValueError, match="as asked"):
            self.service.fail(array)

    @rule(index=indexes, size=sizes)
    def fail_in_a_callback(self, index: int, size: int) -> None:
        array, _ = self.some(index, size)

        def function(x: Any) -> Any:
            raise ValueError("over here")

        with self.may_die(), pytest.raises(ValueError, match="over here"):
            self.service.call_back(function, array)

    @rule(index=indexes, size=sizes)
    def cannot_be_encoded(self, index: int, size: int) -> None:
        """After arrays that were noted already."""
        array, _ = self.some(index, size)
        with self.may_die(), pytest.raises(atoll.EncodeError):
            self.service.echo([array, threading.Lock()])

    @rule(index=indexes, size=sizes)
    def miss_a_deadline(self, index: int, size: int) -> None:
        array, _ = self.some(index, size)

        def wait(x: Any) -> Any:
            threading.Event().wait(0.05)
            return x

        try:
            self.service.call_back.options(timeout=0.02)(wait, array)
        except atoll.CallTimeout:
            self.harmed = True  # it may have been ended
        except atoll.WorkerDied:
            until(lambda: self.harmed or not self.cancelling)
            assert self.harmed

    # -- what happens to memory ------------------------------------------------------------------------------

    @rule(other=st.booleans())
    def kill(self, other: bool) -> None:
        for pid in ready_pids(self.other if other else self.service)[:1]:
            self.harmed = True
            self.kept.pop(pid, None)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @rule()
    def reload(self) -> None:
        self.replace_workers(self.service)

    def replace_workers(self, service: Any) -> None:
        with self.may_die():
            before = set(ready_pids(service))
            service.reload(WITHIN)
            for pid in before:
                self.kept.pop(pid, None)

    @rule()
    def trim(self) -> None:
        atoll.trim_memory()

    @rule(budget=st.sampled_from([32 * MB, 64 * MB, 1 << 30]))
    def set_budget(self, budget: int) -> None:
        atoll.set_memory_budget(budget)

    @invariant()
    def the_next_rule_has_room(self) -> None:
        """Who holds more than the budget allows is refused in the end, and rightly: here it is let go of in time."""
        if not hasattr(self, "service") or self.has_room():
            return
        self.held.clear()
        for call, _ in self.calls:
            call.exception(WITHIN)
        gc.collect()

        def make_room() -> bool:
            if not self.has_room():
                self.replace_workers(self.service)
                self.replace_workers(self.other)
            return self.has_room()

        until(make_room, WITHIN)

    def has_room(self) -> bool:
        status = atoll.memory()
        begun = sum(not call.done() for call, _ in self.calls)
        return status.budget - (status.bytes - status.recycled_bytes) >= ROOM + begun * size_class(max(SIZES))

    @invariant()
    def nobodys_data_changes(self) -> None:
        for array, expected in getattr(self, "held", ()):
            assert checksum(array) == expected

    def teardown(self) -> None:
        if not hasattr(self, "service"):
            return
        if isinstance(sys.exc_info()[1], Exception):
            # A rule failed. What its frames hold is not asked for: that would hide why.
            self.held.clear()
            self.streams.clear()
            self.service.close()
            self.other.close()
            return
        try:
            self.held.clear()
            self.streams.clear()
            while self.calls:
                self.calls.pop()[0].exception(WITHIN)
            gc.collect()
            if not self.harmed:
                self.everything_is_given_back()
        finally:
            self.service.close()
            self.other.close()
            gc.collect()
        until_given_back()
        atoll.trim_memory()
        status = atoll.memory()
        assert (status.lent, status.borrowed, status.segments, status.bytes) == (0, 0, 0, 0), str(status)
        until(lambda: not segment_descriptors(), what="the last descriptor to be closed")

    def everything_is_given_back(self) -> None:
        """While the workers live: nothing is held on either side, but what each wrote down."""
        services = ((self.service, self.workers), (self.other, 1))
        for service, workers in services:
            self.everyone(service, workers, "drop_all_and_meet")
        until_given_back()
        atoll.trim_memory()
        # All of them again and again: what one made, and another has, goes once both do without it.
        try:
            until(lambda: sum(self.have_nothing(service, workers) for service, workers in services) == len(services))
        except AssertionError:
            left = [self.everyone(service, workers, "figures_and_meet") for service, workers in services]
            raise AssertionError(f"what is left: {left}") from None
        until(lambda: len(segment_descriptors()) <= LEDGERS * (self.workers + 1), what="the descriptors of the host")

    def have_nothing(self, service: Any, workers: int) -> bool:
        answers = self.everyone(service, workers, "figures_and_meet")
        return all(
            (figures["lent"], figures["borrowed"], figures["bytes"]) == (0, 0, 0) and len(descriptors) <= LEDGERS
            for _, figures, descriptors in answers
        )


@pytest.mark.stress
@pytest.mark.timeout(SECONDS * 8 + 120)
def test_lives_in_any_order(service_file: Path, everyone: Callable[..., list[Any]]) -> None:
    machine = type("LivesOfFile", (Lives,), {"file": service_file, "everyone": staticmethod(everyone)})
    case = machine.TestCase  # type: ignore[attr-defined]
    case.settings = settings(
        max_examples=max(3, round(SECONDS)),
        stateful_step_count=25,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # what fails waits long: it is not made smaller
        suppress_health_check=list(HealthCheck),
    )
    case("runTest").runTest()
