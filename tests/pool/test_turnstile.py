# SPDX-License-Identifier: Apache-2.0
"""The turnstile: first come, first served, threads and tasks mixed; never two inside, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.pool.turnstile import Turnstile
from conditions import until


def free(turnstile: Turnstile) -> bool:
    """Whether nobody is inside and nobody waits."""
    if not turnstile.try_enter():
        return False
    turnstile.leave()
    return turnstile.waiting == 0


def test_one_at_a_time() -> None:
    turnstile = Turnstile()
    assert turnstile.try_enter()
    assert not turnstile.try_enter()
    turnstile.leave()
    assert turnstile.enter()
    turnstile.leave()
    assert free(turnstile)


def test_threads_and_tasks_come_through_in_the_order_they_came() -> None:
    turnstile = Turnstile()
    turnstile.enter()
    order: list[int] = []
    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever)
    runner.start()
    threads, futures = [], []

    def pass_through(number: int) -> None:
        assert turnstile.enter()
        order.append(number)
        turnstile.leave()

    async def pass_through_async(number: int) -> None:
        assert await turnstile.enter_async()
        order.append(number)
        turnstile.leave()

    for number in range(12):
        if number % 3:
            thread = threading.Thread(target=pass_through, args=(number,))
            thread.start()
            threads.append(thread)
        else:
            futures.append(asyncio.run_coroutine_threadsafe(pass_through_async(number), loop))
        until(lambda n=number: turnstile.waiting == n + 1)
    turnstile.leave()
    for thread in threads:
        thread.join(20)
    for future in futures:
        future.result(20)
    loop.call_soon_threadsafe(loop.stop)
    runner.join(20)
    loop.close()
    assert order == list(range(12))
    assert free(turnstile)


def test_who_comes_later_does_not_overtake_the_queue() -> None:
    turnstile = Turnstile()
    turnstile.enter()
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (turnstile.enter(), entered.set()))
    thread.start()
    until(lambda: turnstile.waiting == 1)
    turnstile.leave()
    assert not turnstile.try_enter()  # it is the other's turn already, whether or not it runs yet
    thread.join(20)
    assert entered.is_set()
    turnstile.leave()
    assert free(turnstile)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.02])
def test_a_deadline_that_passes(seconds: float) -> None:
    turnstile = Turnstile()
    turnstile.enter()
    assert not turnstile.enter(time.monotonic() + seconds)

    async def main() -> bool:
        return await turnstile.enter_async(time.monotonic() + seconds)

    assert not asyncio.run(main())
    turnstile.leave()
    assert turnstile.enter(time.monotonic() + 20)
    turnstile.leave()
    assert free(turnstile)


def test_a_cancelled_task_gives_its_place_away() -> None:
    turnstile = Turnstile()

    async def main() -> None:
        turnstile.enter()
        first, second, third = (asyncio.create_task(turnstile.enter_async()) for _ in range(3))
        while turnstile.waiting < 3:
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        turnstile.leave()
        assert await first
        turnstile.leave()
        assert await third
        turnstile.leave()
        assert second.cancelled()

    asyncio.run(main())
    assert free(turnstile)


def test_a_task_that_is_cancelled_in_the_moment_its_turn_comes() -> None:
    turnstile = Turnstile()

    async def main() -> None:
        for granted_first in (True, False):
            turnstile.enter()
            task = asyncio.create_task(turnstile.enter_async())
            while turnstile.waiting < 1:
                await asyncio.sleep(0)
            if granted_first:
                turnstile.leave()
                task.cancel()
            else:
                task.cancel()
                turnstile.leave()
            results = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert free(turnstile), granted_first

    asyncio.run(main())


def test_a_loop_that_was_closed_with_a_task_in_the_queue() -> None:
    turnstile = Turnstile()
    turnstile.enter()
    loop = asyncio.new_event_loop()
    task = loop.create_task(turnstile.enter_async())
    loop.run_until_complete(asyncio.sleep(0))
    assert turnstile.waiting == 1
    loop.close()
    turnstile.leave()  # the turn passes through the dead task to nobody
    assert free(turnstile)
    turnstile.enter()
    task.get_coro().close()  # type: ignore[union-attr]  # as garbage collection does: must not leave for somebody else
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert not turnstile.try_enter()
    turnstile.leave()
    assert free(turnstile)


class _Interrupted(BaseException):
    """What a signal handler raises."""


def test_an_interrupt_while_waiting_gives_the_place_away() -> None:
    import signal

    turnstile = Turnstile()
    turnstile.enter()

    def interrupt(*_: object) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for deadline in (None, time.monotonic() + 20):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(_Interrupted):
                turnstile.enter(deadline)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    turnstile.leave()
    assert free(turnstile)


class Witness:
    """Counts who is inside; notes whenever there were two."""

    def __init__(self, turnstile: Turnstile) -> None:
        self.turnstile = turnstile
        self.inside = 0
        self.most = 0
        self.passed = 0
        self.gave_up = 0
        self.wrong: list[object] = []

    def enter(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.passed += 1

    def leave(self) -> None:
        self.inside -= 1
        self.turnstile.leave()


def wander(witness: Witness, seed: int, steps: int) -> None:
    """A thread that comes through in every way, at random."""
    choose = random.Random(seed)
    try:
        for _ in range(steps):
            way = choose.random()
            if way < 0.3:
                entered = witness.turnstile.try_enter()
            elif way < 0.7:
                entered = witness.turnstile.enter()
            else:
                entered = witness.turnstile.enter(time.monotonic() + choose.choice([0, 1e-5, 1e-3]))
            if entered:
                witness.enter()
                if choose.random() < 0.3:
                    time.sleep(0)
                witness.leave()
            else:
                witness.gave_up += 1
    except BaseException as error:
        witness.wrong.append(error)


async def wander_async(witness: Witness, seed: int, steps: int) -> None:
    """A task that does."""
    choose = random.Random(seed)
    for _ in range(steps):
        deadline = None if choose.random() < 0.5 else time.monotonic() + choose.choice([0, 1e-5, 1e-3])
        attempt = asyncio.create_task(witness.turnstile.enter_async(deadline))
        if choose.random() < 0.3:
            for _ in range(choose.randrange(3)):
                await asyncio.sleep(0)
            attempt.cancel()
        try:
            entered = await attempt
        except asyncio.CancelledError:
            witness.gave_up += 1
            continue
        if entered:
            witness.enter()
            if choose.random() < 0.3:
                await asyncio.sleep(0)
            witness.leave()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(threads=st.integers(0, 4), loops=st.integers(0, 2), tasks=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_random_comings_and_goings(threads: int, loops: int, tasks: int, seed: int) -> None:
    """Never two inside; when all have gone, nobody is forgotten and the way is free. A lost turn would hang."""
    witness = Witness(Turnstile())

    def loop(number: int) -> None:
        async def main() -> None:
            await asyncio.gather(*(wander_async(witness, seed + 100 * number + task, 40) for task in range(tasks)))

        try:
            asyncio.run(main())
        except BaseException as error:
            witness.wrong.append(error)

    running = [threading.Thread(target=wander, args=(witness, seed + n, 150), daemon=True) for n in range(threads)]
    running += [threading.Thread(target=loop, args=(n,), daemon=True) for n in range(loops)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
    assert not any(thread.is_alive() for thread in running), "a turn was lost"
    assert witness.wrong == []
    assert witness.most <= 1
    assert witness.inside == 0
    assert free(witness.turnstile)
