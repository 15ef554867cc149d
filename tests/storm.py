# SPDX-License-Identifier: Apache-2.0
"""Callers that never stop while something goes wrong: every question gets its own answer, or an error that is allowed.

A question is a number that is asked once; its answer carries it. What does not belong here: what goes wrong.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import atoll
from conditions import state_of, until, until_gone

# Seconds that the long tests torment a pool for; the shorter ones take their part of it.
SECONDS = float(os.environ.get("ATOLL_CHAOS_SECONDS", "30"))
# Seconds after which a call that has not ended hangs.
PATIENCE = 30.0
# Restarting is not what is tried here, so it goes on for ever.
TIRELESS: dict[str, Any] = {
    "restart": atoll.Restart(backoff=0, backoff_max=0, max_restarts=1_000_000, window=1),
    "breaker": atoll.Breaker(failures=1_000_000, cooldown=0.1),
}


def seconds(of_thirty: float) -> float:
    """So much of the time that there is, where all of it is 30."""
    return SECONDS * of_thirty / 30


class Storm:
    """Callers, each on a thread; or, with ``ask_async``, tasks of one event loop.

    Args:
        ask: asks a question and returns the answer, which is right if it equals ``expected(question)``.
        expected: the right answer.
        callers: how many ask at the same time.
        allowed: what a call may raise.

    Attributes:
        right: how many were answered rightly.
        raised: how many raised what is allowed, by the name of the class.
        wrong: what else happened, in words.
    """

    def __init__(
        self,
        ask: Callable[[int], Any] | None = None,
        *,
        ask_async: Callable[[int], Awaitable[Any]] | None = None,
        expected: Callable[[int], Any] = lambda question: question,
        callers: int = 8,
        allowed: tuple[type[BaseException], ...] = (atoll.WorkerDied,),
    ) -> None:
        self._ask = ask
        self._ask_async = ask_async
        self._expected = expected
        self._callers = callers
        self._allowed = allowed
        self._stop = threading.Event()
        self.right = 0
        self.raised: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    @contextmanager
    def around(self) -> Iterator[Storm]:
        """Callers ask as long as the block lasts; after it each has had an end, and only what is allowed happened."""
        if self._ask_async is not None:
            threads = [threading.Thread(target=lambda: asyncio.run(self._call_async()), daemon=True)]
        else:
            threads = [threading.Thread(target=self._call, args=(one,), daemon=True) for one in range(self._callers)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            deadline = time.monotonic() + PATIENCE
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        frames = sys._current_frames()
        hanging = [thread.ident for thread in threads if thread.is_alive()]
        where = ["".join(traceback.format_stack(frames[ident])) for ident in hanging if ident in frames]
        assert not hanging, f"{len(hanging)} callers hang:\n" + "\n".join(where)
        assert not self.wrong, f"{len(self.wrong)} calls ended wrongly, such as:\n" + "\n".join(self.wrong[:3])
        assert self.right, f"no call was answered; raised: {self.raised}"

    def _questions(self, caller: int) -> Iterator[int]:
        question = caller << 32
        while not self._stop.is_set() and len(self.wrong) < 100:
            question += 1
            yield question

    def _call(self, caller: int) -> None:
        assert self._ask is not None
        for question in self._questions(caller):
            try:
                self._hear(question, self._ask(question))
            except BaseException as error:
                self._hear_raised(question, error)

    async def _call_async(self) -> None:
        ask = self._ask_async
        assert ask is not None

        async def call(caller: int) -> None:
            for question in self._questions(caller):
                try:
                    self._hear(question, await ask(question))
                except BaseException as error:
                    self._hear_raised(question, error)

        await asyncio.gather(*(call(caller) for caller in range(self._callers)))

    def _hear(self, question: int, answer: object) -> None:
        right = answer == self._expected(question)
        with self._lock:
            if right:
                self.right += 1
            else:
                self.wrong.append(f"{question} was answered with {answer!r:.200}")

    def _hear_raised(self, question: int, error: BaseException) -> None:
        with self._lock:
            if isinstance(error, self._allowed):
                self.raised[type(error).__name__] += 1
            else:
                self.wrong.append(f"{question} raised:\n{''.join(traceback.format_exception(error))}")


def ready_pids(service: Any) -> list[int]:
    """Process ids of the workers that take calls."""
    return [worker.pid for worker in service.status().workers if worker.state == "ready"]


def torment(service: Any, number: int, for_seconds: float, every: float = 0.05, seed: int = 1) -> int:
    """Send a signal to a random worker, again and again. Returns how many there were."""
    choose = random.Random(seed)
    pause = threading.Event()
    deadline = time.monotonic() + for_seconds
    hit: list[int] = []
    while time.monotonic() < deadline:
        pids = ready_pids(service)
        if pids:
            pid = choose.choice(pids)
            try:
                os.kill(pid, number)
                hit.append(pid)
            except ProcessLookupError:
                pass  # it had ended
        pause.wait(every)
    if number == signal.SIGKILL:
        until_gone(*hit)  # which takes a processor
    return len(hit)


def check_healthy(service: Any, ask: Callable[[int], Any], workers: int, expected: Callable[[int], Any]) -> None:
    """All workers are there, none is left over, nobody waits, and calls are answered."""

    def healthy() -> bool:
        status = service.status()
        states = [worker.state for worker in status.workers]
        # Nor is it still to be noticed that one was killed or stopped: a call that goes there would be lost.
        hurt = any(state_of(worker.pid) in ("gone", "T") for worker in status.workers)
        return bool(status.state == "running" and states == ["ready"] * workers and not hurt)

    until(healthy, PATIENCE, "all workers are ready")
    for question in range(200):
        assert ask(question) == expected(question)

    def at_rest() -> bool:
        status = service.status()
        return bool((status.queue, status.in_flight) == (0, 0))

    until(at_rest, PATIENCE, "nobody waits, and no call is in flight")
