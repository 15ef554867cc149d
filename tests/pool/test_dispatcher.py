# SPDX-License-Identifier: Apache-2.0
"""The dispatcher: first come, first served, threads and tasks mixed; a channel is never with two, and nobody is
forgotten, whatever becomes of workers and of those who wait."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.pool.dispatcher import Dispatcher, QueueIsFull, WaitedTooLong
from conditions import until


class Channel:
    """What a dispatcher knows of a channel."""

    def __init__(self, worker: Worker, index: int) -> None:
        self.worker = worker
        self.index = index
        self.retired = False
        self.owner: object = None

    def __repr__(self) -> str:
        return f"{self.worker.name}{self.index}"


class Gone(Exception):
    """The worker that was needed is gone."""


class Worker:
    """What it knows of a worker."""

    def __init__(self, name: str = "w", channels: int = 1) -> None:
        self.name = name
        self.channels = [Channel(self, index) for index in range(channels)]
        self.spare: list[Channel] = []
        self.alive = True
        self.freed = 0

    def let_go(self, channel: Channel) -> None:
        self.spare.append(channel)
        self.check_free()

    def check_free(self) -> None:
        if len(self.spare) == len(self.channels):
            self.freed += 1

    def gone(self) -> Gone:
        return Gone(self.name)


def make(*workers: Worker, concurrency: int = 1, most_waiting: int = 1000) -> Any:
    """A dispatcher of these workers. Untyped, since it gets stand-ins."""
    dispatcher: Any = Dispatcher(concurrency, most_waiting, lambda: None)
    for worker in workers:
        dispatcher.add(worker)
    return dispatcher


def enter(dispatcher: Any, timeout: float | None = None, worker: Worker | None = None) -> Any:
    return dispatcher.enter(time.monotonic(), timeout, worker)


async def enter_async(dispatcher: Any, timeout: float | None = None, worker: Worker | None = None) -> Any:
    return await dispatcher.enter_async(asyncio.get_running_loop(), time.monotonic(), timeout, worker)


def all_free(dispatcher: Any) -> bool:
    """Whether nobody waits, and every channel lies among the idle ones, once."""
    channels = [channel for worker in dispatcher.workers for channel in worker.channels]
    return (
        not dispatcher.queue
        and not dispatcher._lines
        and dispatcher.waiting == 0
        and sorted(map(id, dispatcher.idle)) == sorted(map(id, channels))
    )


class Waiting(threading.Thread):
    """A thread that waits for a channel, and keeps it until it is told otherwise."""

    def __init__(self, dispatcher: Any, timeout: float | None = None, worker: Worker | None = None) -> None:
        super().__init__(daemon=True)
        self.outcome: Any = None
        self._dispatcher = dispatcher
        self._timeout = timeout
        self._worker = worker
        before = dispatcher.waiting
        self.start()
        until(lambda: dispatcher.waiting == before + 1 or self.outcome is not None)

    def run(self) -> None:
        try:
            self.outcome = enter(self._dispatcher, self._timeout, self._worker)
        except BaseException as error:
            self.outcome = error

    def result(self) -> Any:
        """The channel it got; or the error."""
        self.join(20)
        assert not self.is_alive(), "it was forgotten"
        return self.outcome


# -- one channel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_task", [False, True], ids=["thread", "task"])
def test_who_had_a_turn_that_came_to_nothing_is_first(by_task: bool) -> None:
    """Also where no more may wait."""
    worker = Worker()
    dispatcher = make(worker, most_waiting=1)
    channel = enter(dispatcher)
    order: list[str] = []

    def wait(name: str, again: bool) -> None:
        if by_task:
            loop = asyncio.new_event_loop()
            got = loop.run_until_complete(dispatcher.enter_async(loop, time.monotonic(), None, None, again))
            loop.close()
        else:
            got = dispatcher.enter(time.monotonic(), None, None, None, again)
        order.append(name)
        dispatcher.give(got)

    callers = []
    for number, (name, again) in enumerate({"first": False, "again": True}.items()):
        callers.append(threading.Thread(target=wait, args=(name, again)))
        callers[-1].start()
        until(lambda number=number: dispatcher.waiting == number + 1)  # type: ignore[misc]
    with pytest.raises(QueueIsFull):
        enter(dispatcher)
    dispatcher.give(channel)
    for caller in callers:
        caller.join()
    assert order == ["again", "first"]
    assert all_free(dispatcher)


def test_one_at_a_time() -> None:
    dispatcher = make(Worker())
    channel = dispatcher.take()
    with pytest.raises(IndexError):
        dispatcher.take()
    dispatcher.give(channel)
    assert enter(dispatcher) is channel
    dispatcher.give(channel)
    assert all_free(dispatcher)


def test_threads_and_tasks_come_through_in_the_order_they_came() -> None:
    dispatcher = make(Worker())
    first = dispatcher.take()
    order: list[int] = []
    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever)
    runner.start()
    threads, futures = [], []

    def pass_through(number: int) -> None:
        channel = enter(dispatcher)
        assert channel.owner is None
        order.append(number)
        dispatcher.give(channel)

    async def pass_through_async(number: int) -> None:
        channel = await enter_async(dispatcher)
        assert channel.owner is loop
        order.append(number)
        dispatcher.give(channel)

    for number in range(12):
        if number % 3:
            thread = threading.Thread(target=pass_through, args=(number,))
            thread.start()
            threads.append(thread)
        else:
            futures.append(asyncio.run_coroutine_threadsafe(pass_through_async(number), loop))
        until(lambda n=number: dispatcher.waiting == n + 1)
    dispatcher.give(first)
    for thread in threads:
        thread.join(20)
    for future in futures:
        future.result(20)
    loop.call_soon_threadsafe(loop.stop)
    runner.join(20)
    loop.close()
    assert order == list(range(12))
    assert all_free(dispatcher)


def test_who_comes_later_does_not_overtake_the_queue() -> None:
    dispatcher = make(Worker())
    channel = dispatcher.take()
    waiting = Waiting(dispatcher)
    dispatcher.give(channel)
    with pytest.raises(IndexError):
        dispatcher.take()  # it is the other's turn already, whether or not it runs yet
    assert waiting.result() is channel
    dispatcher.give(channel)
    assert all_free(dispatcher)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.02])
def test_a_deadline_that_passes(seconds: float) -> None:
    dispatcher = make(Worker())
    channel = dispatcher.take()
    with pytest.raises(WaitedTooLong):
        enter(dispatcher, seconds)

    async def main() -> None:
        with pytest.raises(WaitedTooLong):
            await enter_async(dispatcher, seconds)

    asyncio.run(main())
    assert dispatcher.waiting == 0
    dispatcher.give(channel)
    assert enter(dispatcher, 20.0) is channel
    dispatcher.give(channel)
    assert all_free(dispatcher)


def test_the_timeout_does_not_count_before_the_first_worker_is_ready() -> None:
    """Neither what was waited for it, nor what was waited for another first one after all were gone."""
    dispatcher = make()
    for _ in range(2):
        worker = Worker()
        long_ago = time.monotonic() - 10_000
        outcomes: list[Any] = []

        def wait(entered: float = long_ago, outcomes: list[Any] = outcomes) -> None:
            outcomes.append(dispatcher.enter(entered, 1000.0))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        until(lambda: dispatcher.waiting == 1)
        assert dispatcher._left(long_ago, 1000.0) is None
        dispatcher.add(worker)
        thread.join(20)
        assert outcomes == worker.channels
        assert dispatcher._left(long_ago, 1000.0) > 500  # counted since the worker became ready
        dispatcher.give(outcomes[0])
        dispatcher.ended(worker)
        assert dispatcher.serving_since is None

    # Nor for tasks.
    async def main() -> Any:
        task = asyncio.create_task(
            dispatcher.enter_async(asyncio.get_running_loop(), time.monotonic() - 10_000, 1000.0)
        )
        while not dispatcher.waiting:
            await asyncio.sleep(0)
        dispatcher.add(worker := Worker())
        assert await task is worker.channels[0]

    asyncio.run(main())


def test_a_timeout_that_was_no_timeout_yet_ends_the_waiting_later() -> None:
    """Who began to wait without a worker is bound by its timeout once there is one."""
    dispatcher = make()
    waiting = Waiting(dispatcher, timeout=0.05)
    holder = Worker()
    dispatcher.idle.clear()
    with dispatcher._lock:  # a worker that becomes ready, and all of whose channels are taken before anybody else looks
        dispatcher._workers.append(holder)
        dispatcher.serving_since = time.monotonic()
    assert isinstance(waiting.result(), WaitedTooLong)
    assert dispatcher.waiting == 0


# -- giving up ---------------------------------------------------------------------------------------------------------


def test_a_cancelled_task_gives_its_place_away() -> None:
    dispatcher = make(Worker())

    async def main() -> None:
        channel = dispatcher.take()
        first, second, third = (asyncio.create_task(enter_async(dispatcher)) for _ in range(3))
        while dispatcher.waiting < 3:
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        dispatcher.give(channel)
        dispatcher.give(await first)
        dispatcher.give(await third)
        assert second.cancelled()

    asyncio.run(main())
    assert all_free(dispatcher)


def test_a_task_that_is_cancelled_in_the_moment_its_turn_comes() -> None:
    dispatcher = make(Worker())

    async def main() -> None:
        for granted_first in (True, False):
            channel = dispatcher.take()
            task = asyncio.create_task(enter_async(dispatcher))
            while dispatcher.waiting < 1:
                await asyncio.sleep(0)
            if granted_first:
                dispatcher.give(channel)
                task.cancel()
            else:
                task.cancel()
                dispatcher.give(channel)
            results = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert all_free(dispatcher), granted_first

    asyncio.run(main())


def test_a_loop_that_was_closed_with_a_task_in_the_queue() -> None:
    dispatcher = make(Worker())
    channel = dispatcher.take()
    loop = asyncio.new_event_loop()
    task = loop.create_task(dispatcher.enter_async(loop, time.monotonic(), None))
    loop.run_until_complete(asyncio.sleep(0))
    assert dispatcher.waiting == 1
    loop.close()
    dispatcher.give(channel)  # it passes through the dead task to nobody
    assert all_free(dispatcher)
    channel = dispatcher.take()
    task.get_coro().close()  # as garbage collection does: must not give for somebody else
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with pytest.raises(IndexError):
        dispatcher.take()
    dispatcher.give(channel)
    assert all_free(dispatcher)


def test_any_number_of_dead_tasks_is_passed() -> None:
    """However many tasks a closed loop left behind, the one who lives and came last gets the channel."""
    dispatcher = make(Worker(), most_waiting=10_000)
    channel = dispatcher.take()
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(dispatcher.enter_async(loop, time.monotonic(), None)) for _ in range(3000)]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    waiting = Waiting(dispatcher)
    assert dispatcher.waiting == 3001
    dispatcher.give(channel)
    assert waiting.result() is channel
    dispatcher.give(channel)
    assert all_free(dispatcher)
    for task in tasks:
        task.get_coro().close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert all_free(dispatcher)


class _Interrupted(BaseException):
    """What a signal handler raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], object], Callable[[], object]], None]]:
    """Do something within a signal handler of this thread, as soon as something is so."""
    before = signal.getsignal(signal.SIGALRM)
    mine = threading.get_ident()
    ringing: list[threading.Thread] = []

    def ring(act: Callable[[], object], once: Callable[[], object]) -> None:
        def wait_and_ring() -> None:
            until(once)
            signal.pthread_kill(mine, signal.SIGALRM)

        signal.signal(signal.SIGALRM, lambda *_: act())
        ringing.append(threading.Thread(target=wait_and_ring, daemon=True))
        ringing[0].start()

    yield ring
    for thread in ringing:
        thread.join(20)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_an_interrupt_while_waiting_gives_the_place_away(
    timeout: float | None, alarm: Callable[[Callable[[], object], Callable[[], object]], None]
) -> None:
    def interrupt() -> None:
        raise _Interrupted

    dispatcher = make(Worker())
    channel = dispatcher.take()
    alarm(interrupt, lambda: dispatcher.waiting)
    with pytest.raises(_Interrupted):
        enter(dispatcher, timeout)
    assert dispatcher.waiting == 0
    dispatcher.give(channel)
    assert all_free(dispatcher)


def test_an_interrupt_while_it_joins_the_queue_gives_the_place_away() -> None:
    def interrupt() -> None:
        raise _Interrupted

    dispatcher: Any = Dispatcher(1, 1000, interrupt)
    dispatcher.add(Worker())
    channel = dispatcher.take()
    with pytest.raises(_Interrupted):
        enter(dispatcher)
    with pytest.raises(_Interrupted):
        asyncio.run(enter_async(dispatcher))
    assert dispatcher.waiting == 0
    dispatcher.give(channel)
    assert all_free(dispatcher)


def test_what_is_looked_at_while_it_takes_long_may_end_the_waiting() -> None:
    class Never(Exception):
        pass

    def check() -> None:
        raise Never

    dispatcher = make(Worker())
    channel = dispatcher.take()
    with pytest.raises(Never):
        dispatcher.enter(time.monotonic(), None, None, check)
    dispatcher.give(channel)
    assert all_free(dispatcher)


def test_a_signal_handler_may_call_while_its_thread_is_within_the_dispatcher() -> None:
    """Its lock is reentrant: the handler would otherwise wait for the very thread that it interrupted."""
    worker, other = Worker("a"), Worker("b")
    dispatcher = make(worker, other)
    with dispatcher._lock:
        channel = enter(dispatcher, 20.0, worker)
        dispatcher.give(channel)
    assert all_free(dispatcher)


# -- several workers ---------------------------------------------------------------------------------------------------


def test_the_channel_used_last_is_taken_first() -> None:
    one, other = Worker("a"), Worker("b")
    dispatcher = make(one, other)
    first, second = dispatcher.take(), dispatcher.take()
    assert {first.worker, second.worker} == {one, other}
    for channel in (first, second):
        dispatcher.give(channel)
        assert dispatcher.take() is channel
        assert dispatcher.in_flight(channel.worker) == 1
    dispatcher.give(first)
    dispatcher.give(second)
    assert all_free(dispatcher)


def test_with_several_channels_a_worker_the_least_loaded_goes_first() -> None:
    workers = [Worker("a", 3), Worker("b", 3), Worker("c", 3)]
    dispatcher = make(*workers, concurrency=3)
    taken = []
    for round_number in range(1, 4):
        taken += [dispatcher.take() for _ in workers]
        assert [dispatcher.in_flight(worker) for worker in workers] == [round_number] * 3
    with pytest.raises(IndexError):
        dispatcher.take()
    lonely = next(channel for channel in taken if channel.worker is workers[1])
    others = [channel for channel in taken if channel.worker is workers[2]]
    dispatcher.give(lonely)
    for channel in others[:2]:
        dispatcher.give(channel)
    assert dispatcher.take().worker is workers[2]  # it runs one call, the other one two
    # The same for those who had to wait.
    for channel in dispatcher.idle.copy():
        dispatcher.idle.remove(channel)
    waiting = Waiting(dispatcher)
    with dispatcher._lock:  # all come back before anybody looks
        dispatcher.idle += [*workers[0].channels[:1], *workers[1].channels[:2], *workers[2].channels[:1]]
    dispatcher.pass_on()
    assert waiting.result().worker is workers[1]


def test_a_channel_that_is_retired_while_the_least_loaded_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then another one is taken; it does not fail."""
    leaving, staying = Worker("leaving", 2), Worker("staying", 1)
    dispatcher = make(leaving, staying, concurrency=2)

    class Idle(list):  # type: ignore[type-arg]
        """A worker is retired in the moment between the choice and the taking."""

        def copy(self) -> list[Any]:
            found = list(self)
            if leaving in dispatcher.workers:
                monkeypatch.setattr(dispatcher, "pass_on", lambda: None)
                dispatcher.retire(leaving)
            return found

    dispatcher.idle = Idle(dispatcher.idle)
    assert dispatcher.take().worker is staying
    assert leaving.freed == 1


def test_several_channels_wake_as_many() -> None:
    dispatcher = make()
    waiting = [Waiting(dispatcher) for _ in range(5)]
    dispatcher.add(Worker("a", 1))
    dispatcher.add(Worker("b", 1))
    dispatcher.add(Worker("c", 1))
    first = [one.result() for one in waiting[:3]]
    assert {channel.worker.name for channel in first} == {"a", "b", "c"}
    assert dispatcher.waiting == 2
    dispatcher.give(first[0])
    dispatcher.give(first[1])
    assert [one.result() for one in waiting[3:]] == first[:2]


def test_it_says_when_somebody_wants_a_worker() -> None:
    """Each time one begins to wait for any; never because of those who need a certain one."""
    wanted: list[int] = []
    dispatcher: Any = Dispatcher(1, 1000, lambda: wanted.append(dispatcher.waiting))
    worker = Worker()
    dispatcher.add(worker)
    channel = dispatcher.take()
    certain = Waiting(dispatcher, worker=worker)
    assert wanted == []
    others = []
    for standing in (2, 3):
        others.append(Waiting(dispatcher))
        until(lambda standing=standing: len(wanted) == standing - 1)
        assert wanted[-1] == standing  # it stands in the queue already when it is said
    for one in (certain, *others):
        dispatcher.give(channel)
        assert one.result() is channel


# -- workers that leave ------------------------------------------------------------------------------------------------


def test_a_retired_worker_takes_no_more_calls() -> None:
    """Neither its idle channels nor, once their calls are through, the busy ones; then it is free to go."""
    leaving, staying = Worker("leaving", 2), Worker("staying", 2)
    dispatcher = make(leaving, staying, concurrency=2)
    busy: list[Any] = []
    while not any(channel.worker is leaving for channel in busy):
        busy.append(dispatcher.take())
    dispatcher.retire(leaving)
    assert dispatcher.workers == [staying]
    assert leaving.freed == 0
    assert all(channel.worker is staying for channel in dispatcher.idle)
    for channel in busy:
        dispatcher.give(channel)
    assert leaving.freed == 1
    assert sorted(leaving.spare, key=lambda one: one.index) == leaving.channels
    assert all_free(dispatcher)
    assert dispatcher.serving_since is not None
    dispatcher.retire(leaving)  # again: nothing more happens
    assert leaving.freed == 1
    dispatcher.retire(staying)
    assert dispatcher.serving_since is None


def test_a_retired_worker_still_serves_those_who_need_this_very_one() -> None:
    leaving, staying = Worker("leaving"), Worker("staying")
    dispatcher = make(leaving, staying)
    dispatcher.retire(leaving)
    channel = enter(dispatcher, worker=leaving)
    assert channel.worker is leaving
    assert dispatcher.in_flight(leaving) == 1
    waiting = Waiting(dispatcher, worker=leaving)
    dispatcher.give(channel)
    assert waiting.result() is channel
    dispatcher.give(channel)
    assert leaving.spare == leaving.channels
    assert all_free(dispatcher)


def test_who_needs_a_worker_that_is_retired_while_it_looks() -> None:
    """The channel is in nobody's list for a moment: whoever looks just then must not be forgotten."""
    leaving = Worker("leaving")
    dispatcher = make(leaving)
    waiting: list[Waiting] = []
    let_go = leaving.let_go

    def let_go_late(channel: Channel) -> None:
        if not waiting:
            waiting.append(Waiting(dispatcher, worker=leaving))  # comes here, finds nothing, and waits
        let_go(channel)

    leaving.let_go = let_go_late  # type: ignore[method-assign]
    dispatcher.retire(leaving)
    assert waiting[0].result() is leaving.channels[0]


def test_when_a_worker_has_ended_those_who_need_it_are_told() -> None:
    dying, staying = Worker("dying"), Worker("staying")
    dispatcher = make(dying, staying)
    channels = [dispatcher.take(), dispatcher.take()]
    needs_it = [Waiting(dispatcher, worker=dying) for _ in range(3)]
    others = Waiting(dispatcher)
    needs_other = Waiting(dispatcher, worker=staying)
    dying.alive = False
    dispatcher.ended(dying)
    assert all(isinstance(one.result(), Gone) for one in needs_it)
    assert dispatcher.waiting == 2
    late = Waiting(dispatcher, worker=dying)
    assert isinstance(late.result(), Gone)

    async def main() -> None:
        with pytest.raises(Gone):
            await enter_async(dispatcher, None, dying)

    asyncio.run(main())
    for channel in channels:
        dispatcher.give(channel)
    assert dying.freed
    staying_channel = staying.channels[0]
    assert others.result() is staying_channel
    dispatcher.give(staying_channel)
    assert needs_other.result() is staying_channel
    dispatcher.give(staying_channel)
    assert all_free(dispatcher)


# -- waiting for a certain worker --------------------------------------------------------------------------------------


def test_who_needs_a_certain_worker_gets_no_other_and_holds_nobody_up() -> None:
    one, other = Worker("a"), Worker("b")
    dispatcher = make(one, other)
    channels = {channel.worker: channel for channel in (dispatcher.take(), dispatcher.take())}
    needs_one = Waiting(dispatcher, worker=one)
    anybody = Waiting(dispatcher)
    dispatcher.give(channels[other])
    assert anybody.result().worker is other  # although it came later
    assert dispatcher.waiting == 1
    dispatcher.give(channels[other])
    assert dispatcher.idle == [channels[other]]
    assert enter(dispatcher) is channels[other]  # nor does it hold up who comes then
    dispatcher.give(channels[other])
    dispatcher.give(channels[one])
    assert needs_one.result().worker is one
    dispatcher.give(channels[one])
    assert all_free(dispatcher)


def test_it_waits_in_the_same_queue() -> None:
    """First come, first served, among those who want any worker and those who need this one."""
    worker = Worker()
    dispatcher = make(worker)
    channel = dispatcher.take()
    waiting = [Waiting(dispatcher, worker=needed) for needed in (None, worker, None, worker, worker, None)]
    for one in waiting:
        dispatcher.give(channel)
        assert one.result() is channel
        assert sum(other.outcome is None for other in waiting) == dispatcher.waiting
    dispatcher.give(channel)
    assert all_free(dispatcher)


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_no_more_wait_than_may() -> None:
    dispatcher = make(Worker(), most_waiting=2)
    channel = dispatcher.take()
    waiting = [Waiting(dispatcher), Waiting(dispatcher)]
    with pytest.raises(QueueIsFull):
        enter(dispatcher)

    async def main() -> None:
        with pytest.raises(QueueIsFull):
            await enter_async(dispatcher)

    asyncio.run(main())
    assert dispatcher.waiting == 2
    dispatcher.give(channel)
    assert waiting[0].result() is channel
    third = Waiting(dispatcher)
    assert dispatcher.waiting == 2
    for one in (waiting[1], third):
        dispatcher.give(channel)
        assert one.result() is channel
    dispatcher.give(channel)
    assert all_free(dispatcher)


def test_those_who_need_a_certain_worker_do_not_fill_the_queue_and_are_not_refused() -> None:
    one, other = Worker("a"), Worker("b")
    dispatcher = make(one, other, most_waiting=1)
    channels = {channel.worker: channel for channel in (dispatcher.take(), dispatcher.take())}
    certain = [Waiting(dispatcher, worker=one) for _ in range(3)]
    anybody = Waiting(dispatcher)
    with pytest.raises(QueueIsFull):
        enter(dispatcher)
    assert dispatcher.waiting == 4
    dispatcher.give(channels[other])
    assert anybody.result() is channels[other]
    dispatcher.give(channels[other])
    for waiting in certain:
        dispatcher.give(channels[one])
        assert waiting.result() is channels[one]
    dispatcher.give(channels[one])
    assert all_free(dispatcher)


def test_none_may_wait() -> None:
    """An idle channel is had all the same, also when somebody waits for another worker; and one is let in while there
    is no worker, or none would ever be wanted."""
    one, other = Worker("a"), Worker("b")
    dispatcher = make(most_waiting=0)
    first = Waiting(dispatcher)
    with pytest.raises(QueueIsFull):
        enter(dispatcher)
    dispatcher.add(one)
    channel = first.result()
    assert channel.worker is one
    with pytest.raises(QueueIsFull):
        enter(dispatcher)
    certain = Waiting(dispatcher, worker=one)
    dispatcher.add(other)
    assert enter(dispatcher, 20.0) is other.channels[0]
    assert asyncio.run(_fails_async(dispatcher)) is QueueIsFull
    dispatcher.give(other.channels[0])

    async def main() -> Any:
        channel = await enter_async(dispatcher, 20.0)
        assert channel.owner is asyncio.get_running_loop()
        return channel

    assert asyncio.run(main()) is other.channels[0]
    dispatcher.give(other.channels[0])
    dispatcher.give(channel)
    assert certain.result() is channel
    dispatcher.give(channel)
    assert all_free(dispatcher)


async def _fails_async(dispatcher: Any) -> type[BaseException]:
    with pytest.raises(QueueIsFull) as caught:
        await enter_async(dispatcher)
    return caught.type


def test_nobody_can_be_called() -> None:
    """Who waits for any worker is told; who needs a certain one is not meant."""

    class NoWorker(Exception):
        pass

    worker = Worker()
    dispatcher = make(worker)
    channel = dispatcher.take()
    anybody = [Waiting(dispatcher) for _ in range(3)]
    certain = Waiting(dispatcher, worker=worker)

    async def main() -> None:
        task = asyncio.create_task(enter_async(dispatcher))
        while dispatcher.waiting < 5:
            await asyncio.sleep(0)
        dispatcher.fail_waiting(NoWorker())
        with pytest.raises(NoWorker):
            await task

    asyncio.run(main())
    assert all(isinstance(one.result(), NoWorker) for one in anybody)
    assert dispatcher.waiting == 1
    dispatcher.give(channel)
    assert certain.result() is channel
    dispatcher.give(channel)
    assert all_free(dispatcher)


def test_who_comes_once_it_is_closed_is_told_so() -> None:
    """However long ago it asked whether it may come. Who needs a certain worker still gets it."""

    class Closed(Exception):
        pass

    worker = Worker()
    dispatcher = make(worker)
    channel = dispatcher.take()
    waiting, certain = Waiting(dispatcher), Waiting(dispatcher, worker=worker)
    until(lambda: dispatcher.waiting == 2)
    dispatcher.close(Closed)
    assert isinstance(waiting.result(), Closed)
    for again in (False, True):
        with pytest.raises(Closed):
            dispatcher.enter(time.monotonic(), None, again=again)
    with pytest.raises(Closed):
        asyncio.run(enter_async(dispatcher))
    told: list[object] = []
    place = dispatcher.reserve(told.append, None, 0)
    assert told == [place]
    with pytest.raises(Closed):
        dispatcher.claim(place)
    assert dispatcher.waiting == 1
    dispatcher.give(channel)
    assert certain.result() is channel


def test_what_is_busy() -> None:
    worker, leaving = Worker("a", 2), Worker("b", 2)
    dispatcher = make(worker, leaving, concurrency=2)
    taken = [dispatcher.take() for _ in range(3)]
    assert sorted(dispatcher.busy(), key=id) == sorted(taken, key=id)
    dispatcher.retire(leaving)
    assert set(dispatcher.busy()) == {channel for channel in taken if channel.worker is worker}


def test_what_was_given_back_for_good_is_not_busy() -> None:
    """Whose worker has ended, which the pool has not seen yet: who calls again does not wait for a call of its own."""
    worker = Worker("a", 1)
    dispatcher = make(worker)
    channel = dispatcher.take()
    channel.retired = True
    dispatcher.give(channel)
    assert dispatcher.workers == [worker]
    assert dispatcher.busy() == []


def test_joining_a_long_queue_costs_no_look_at_everybody_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look for a channel for each worker that somebody needs, not one for each who waits."""
    one, other = Worker("a"), Worker("b")
    dispatcher = make(one, other, most_waiting=10_000)
    dispatcher.take(), dispatcher.take()
    looks: list[Any] = []
    find = dispatcher._find

    def noted(worker: Any) -> Any:
        looks.append(worker)
        return find(worker)

    monkeypatch.setattr(dispatcher, "_find", noted)

    async def main() -> None:
        needed = [None, one, other]
        tasks = [asyncio.create_task(enter_async(dispatcher, None, needed[n % 3])) for n in range(600)]
        while dispatcher.waiting < len(tasks):
            await asyncio.sleep(0)
        assert len(looks) <= 3 * len(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert dispatcher.waiting == 0


# -- everything at random ----------------------------------------------------------------------------------------------


class Witness:
    """Takes note of who has which channel, and of whatever is wrong with it."""

    def __init__(self, dispatcher: Any) -> None:
        self.dispatcher = dispatcher
        self.inside: dict[Any, object] = {}
        self.passed = 0
        self.wrong: list[object] = []

    def enter(self, channel: Any, worker: Worker | None) -> None:
        holder = object()
        if self.inside.setdefault(channel, holder) is not holder:
            self.wrong.append(f"{channel} is with two")
        if worker is not None and channel.worker is not worker:
            self.wrong.append(f"{channel} is of another worker than {worker.name}")
        self.passed += 1

    def leave(self, channel: Any) -> None:
        self.inside.pop(channel, None)
        self.dispatcher.give(channel)


def needed_by(choose: random.Random, dispatcher: Any) -> Worker | None:
    workers = dispatcher.workers
    return choose.choice(workers) if workers and choose.random() < 0.2 else None


def wander(witness: Witness, seed: int, steps: int) -> None:
    """A thread that comes through in every way, at random."""
    choose = random.Random(seed)
    dispatcher = witness.dispatcher
    try:
        for _ in range(steps):
            way, worker = choose.random(), None
            try:
                if way < 0.3:
                    if dispatcher.queue:
                        continue
                    channel = dispatcher.take()
                elif way < 0.7:
                    worker = needed_by(choose, dispatcher)
                    channel = enter(dispatcher, None, worker)
                else:
                    channel = enter(dispatcher, choose.choice([0, 1e-5, 1e-3]))
            except (IndexError, WaitedTooLong, QueueIsFull, Gone):
                continue
            witness.enter(channel, worker)
            if choose.random() < 0.3:
                time.sleep(0)
            witness.leave(channel)
    except BaseException as error:
        witness.wrong.append(error)


async def wander_async(witness: Witness, seed: int, steps: int) -> None:
    """A task that does."""
    choose = random.Random(seed)
    dispatcher = witness.dispatcher
    for _ in range(steps):
        worker = needed_by(choose, dispatcher)
        timeout = None if choose.random() < 0.5 else choose.choice([0, 1e-5, 1e-3])
        attempt = asyncio.create_task(enter_async(dispatcher, timeout, worker))
        if choose.random() < 0.3:
            for _ in range(choose.randrange(3)):
                await asyncio.sleep(0)
            attempt.cancel()
        try:
            channel = await attempt
        except (asyncio.CancelledError, WaitedTooLong, QueueIsFull, Gone):
            continue
        witness.enter(channel, worker)
        if choose.random() < 0.3:
            await asyncio.sleep(0)
        witness.leave(channel)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    threads=st.integers(0, 4),
    loops=st.integers(0, 2),
    tasks=st.integers(1, 5),
    workers=st.integers(1, 3),
    concurrency=st.integers(1, 3),
    most_waiting=st.sampled_from([0, 3, 1000]),
    changes=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_random_comings_and_goings(
    threads: int,
    loops: int,
    tasks: int,
    workers: int,
    concurrency: int,
    most_waiting: int,
    changes: int,
    seed: int,
) -> None:
    """No channel is ever with two; when all have gone, nobody is forgotten, every channel is idle and every worker that
    was retired is free to go. A lost turn would hang."""
    present = [Worker(f"w{number}.", concurrency) for number in range(workers)]
    dispatcher = make(*present, concurrency=concurrency, most_waiting=most_waiting)
    witness = Witness(dispatcher)
    left: list[Worker] = []

    def loop(number: int) -> None:
        async def main() -> None:
            await asyncio.gather(*(wander_async(witness, seed + 100 * number + task, 40) for task in range(tasks)))

        try:
            asyncio.run(main())
        except BaseException as error:
            witness.wrong.append(error)

    def change() -> None:
        """Workers come and go, in order or not."""
        choose = random.Random(seed)
        try:
            for number in range(changes):
                leaving = present.pop(choose.randrange(len(present)))
                successor = Worker(f"s{number}.", concurrency)
                present.append(successor)
                if choose.random() < 0.5:
                    dispatcher.add(successor)
                    dispatcher.retire(leaving)
                else:
                    leaving.alive = False
                    dispatcher.ended(leaving)
                    dispatcher.add(successor)
                left.append(leaving)
                time.sleep(0)
        except BaseException as error:
            witness.wrong.append(error)

    running = [threading.Thread(target=wander, args=(witness, seed + n, 150), daemon=True) for n in range(threads)]
    running += [threading.Thread(target=loop, args=(n,), daemon=True) for n in range(loops)]
    running.append(threading.Thread(target=change, daemon=True))
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
    assert not any(thread.is_alive() for thread in running), "a turn was lost"
    assert witness.wrong == []
    assert witness.inside == {}
    assert all_free(dispatcher)
    assert dispatcher.workers == present or set(dispatcher.workers) == set(present)
    for worker in left:
        assert sorted(worker.spare, key=lambda one: one.index) == worker.channels
        assert worker.freed
