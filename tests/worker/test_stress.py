# SPDX-License-Identifier: Apache-2.0
"""Millions of calls with random tiny delays around the borders between polling, yielding and sleeping: no wake is lost.

A lost wake is recognised for certain: a side slept out its nap although a frame had been published, and no wake byte
comes even afterwards. (That a wake is still on its way when a nap ends is no loss.)
"""

from __future__ import annotations

import os
import random
import struct
import sys
import time
from collections.abc import Callable

import pytest

from atoll_worker import wire
from atoll_worker.connection import Connection

from .pairs import Raw, both_ends, forked

SECONDS = 22.0  # for each way of placing the two processes
CALLS = 700_000  # and at least as many calls,
LONGEST = 180.0  # as far as a machine that is busy with others comes in so many seconds
BATCH = 400
HANGS = 120.0  # seconds after which a call that was not answered never will be
# Who has published may get no processor for a while before it wakes the other side.
MILLISECONDS_ON_ITS_WAY = 30_000
ORDER = struct.Struct("<BBHI")  # polls, yields, most rounds of delay, seed
REPORT = struct.Struct("<II")  # calls so far, lost wakes


class Watched(Connection):
    """A connection that counts the wakes it waited for in vain."""

    lost = 0

    def _poll(self, deadline: float | None, at_most_ms: int) -> bool:
        if super()._poll(deadline, at_most_ms):
            return True
        published = self._lane is not None and not self._announced and self._words[self._read_word] != self._read
        if published and not self._poller.poll(MILLISECONDS_ON_ITS_WAY):
            self.lost += 1
        return False

    def use(self, polls: int, yields: int) -> None:
        """Wait in this way from now on."""
        self._polls, self._yields = range(polls), range(1, yields + 1)


def serve(server: Connection, _: Raw) -> None:
    """Answers with counts, after a random delay; a payload is an order how to wait and to delay from now on."""
    assert isinstance(server, Watched)
    calls = most = 0
    dice = random.Random(0)
    while True:
        payload = server.receive_call()[2]
        calls += 1
        if payload:
            polls, yields, most, seed = ORDER.unpack(payload)
            server.use(polls, yields)
            dice.seed(seed)
        for _ in range(int(dice.random() * most)):
            pass
        server.reply(wire.RESULT, wire.RAW, REPORT.pack(calls & 0xFFFFFFFF, server.lost))


def run(client: Watched, seconds: float, at_least: int) -> int:
    """Calls in batches, each with random ways of waiting and random delays. Returns how many."""
    dice = random.Random(1)
    calls = 0
    begun = time.monotonic()
    while (took := time.monotonic() - begun) < seconds or (calls < at_least and took < LONGEST):
        few = (0, 1, 2, 5, 50)
        client.use(dice.choice(few), dice.choice((0, 1, 2, 5, 60)))
        most = dice.choice((0, 0, 20, 100, 400))
        orders = [ORDER.pack(dice.choice(few), dice.choice((0, 1, 2, 5, 60)), most, dice.getrandbits(32))]
        patient = dice.random() < 0.1
        for _ in range(BATCH):
            for _ in range(int(dice.random() * most)):
                pass
            deadline = time.monotonic() + HANGS
            answer = client.exchange(wire.RAW, orders.pop() if orders else b"", (), deadline, patient)[2]
            calls += 1
            count, lost_there = REPORT.unpack(answer)
            assert count == calls
            assert lost_there == 0, f"the server lost a wake by call {calls}"
            assert client.lost == 0, f"the client lost a wake by call {calls}"
    return calls


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("placement", ["one core", "two cores", "the scheduler's choice"])
def test_no_wake_is_lost(placement: str, record_property: Callable[[str, object], None]) -> None:
    """See the module."""
    cores = sorted(os.sched_getaffinity(0))
    if placement == "two cores" and len(cores) < 2:
        pytest.skip("one core only")
    begun = time.monotonic()
    with forked(serve, make=Watched) as (client, child):
        assert isinstance(client, Watched)
        try:
            if placement == "one core":
                os.sched_setaffinity(0, cores[:1])
                os.sched_setaffinity(child.pid, cores[:1])
            elif placement == "two cores":
                os.sched_setaffinity(0, cores[:1])
                os.sched_setaffinity(child.pid, cores[1:2])
            calls = run(client, SECONDS, CALLS)
            took = time.monotonic() - begun
        finally:
            os.sched_setaffinity(0, cores)
    assert calls >= CALLS or took >= LONGEST
    record_property("calls", calls)
    print(f"\n{placement}: {calls:,} calls in {took:.0f} s, no wake lost")


def test_a_few_calls_of_the_stress_test() -> None:
    """The same for a moment, so that the test itself is tested where the long one is left out."""
    with forked(serve, make=Watched) as (client, _):
        assert isinstance(client, Watched)
        assert run(client, 1.0, BATCH) >= BATCH


def test_a_lost_wake_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stress test counts does count: a peer that publishes and sends no wake is noticed."""
    monkeypatch.setattr(sys.modules[__name__], "MILLISECONDS_ON_ITS_WAY", 1)
    with both_ends() as (client, plain):
        shared = plain._lane
        assert shared is not None
        server = Watched(plain.sock, shared, "server")
        server.conversation.state = wire.IDLE
        client.start_send(wire.CALL, wire.RAW, b"")  # the server is awake, so no wake byte is sent
        assert server._poll(None, 1) is False
        assert server.lost == 1
