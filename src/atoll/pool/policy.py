# SPDX-License-Identifier: Apache-2.0
"""The supervision policy: what happened goes in, what is to be done comes out.

::

    wanted, ready, failed, ended, succeeded, sampled, scale, reload, close, tick   ->   [Start, Retire, Kill, Ping, …]

The rules of this room: everything that decides over a worker's life or the breaker lives here, and nothing else does.
Nothing here acts, waits, reads a clock or draws a random number: the time of every event is its argument, in seconds
of ``time.monotonic()``, and randomness is handed in. The states change by the two tables of ``lifecycle`` and in no
other way; docs/supervision.svg is drawn from them. One thread calls it; any may ask for ``refusal`` and ``workers``.
What does not belong here: processes, queues, whose turn it is, and what a caller's deadline does to a worker.

What it decides:

- Nothing is started before somebody asks for it. Then ``minimum`` workers, all at once; one more for every caller that
  waits beyond those already starting, up to ``maximum``; and one fewer, down to ``minimum``, for each that is idle for
  ``idle_timeout``.
- A worker that ended unexpectedly is replaced: the first time at once, then after ``backoff``, doubled each time
  (± 25 %, at most ``backoff_max``) until a worker serves a call. While a pause lasts nothing is started. The end of a
  worker that had served begins such a row and never lengthens one: eight that are killed together are eight accidents,
  not a row of eight.
- The breaker opens after ``breaker.failures`` workers that failed in a row, and in a crash loop: when more restarts
  are needed within ``window`` than ``max_restarts`` for each worker that the pool wants. While it is open nothing is
  started. Workers that live go on serving, since they are what still works, and callers may queue for those that are
  ready; a caller who finds none is refused with the reason.
- After the cooldown, one worker is tried: as soon as somebody wants one, or at once where others still serve, as then
  nobody may ever have to wait. Its first successful call closes the breaker, as does being ready without being called,
  or standing through a cooldown in a long call. Its failure opens the breaker for twice as long, up to 12 cooldowns;
  so does opening again within ``window`` of having closed.
- A worker that is replaced for its age, calls, memory or new code goes on until the new one is ready. One at a time, so
  that there are never more than ``maximum`` + 1 processes. This is no restart, and a failed one costs no call. A
  reload ends with the first that fails, and blames nobody.
- A worker that was let go and does not end, because a call lasts or something borrowed from it is kept, is waited for
  ``_DRAIN`` seconds. Then it lingers: it counts as no process of the pool, or whoever keeps a stream open would keep
  all other workers from being replaced.
- A worker that leaves a ping unanswered for two intervals is killed if it is stopped, or has neither a call nor used
  the processor; after three also within a call. One that burns the processor in a call only holds the interpreter
  lock: the call's own deadline is for that.
- A failure that trying again cannot mend (``fatal``) is counted by nothing; the next caller tries again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..manifest.sizes import parse_size
from .lifecycle import (
    FAILURES,
    POOL_TRANSITIONS,
    WORKER_TRANSITIONS,
    Action,
    Cause,
    CloseBreaker,
    Kill,
    OpenBreaker,
    Ping,
    PoolEvent,
    PoolState,
    Refusal,
    Retire,
    Sample,
    Start,
    WorkerEvent,
    WorkerState,
)

if TYPE_CHECKING:
    from ..manifest.options import Breaker, Recycle, Restart

# Cooldowns that the breaker stays open at most, however often it was in vain.
_LONGEST_COOLDOWN = 12
# Seconds a probe stands ready without a call until it counts as good; less where the cooldown is shorter.
_UNCALLED = 1.0
# Seconds that the next replacement waits for a worker which was let go to end.
_DRAIN = 1.0
_RELOADED = "reloaded"
# Seconds of processor time below which a worker stands still: two ticks of the kernel's accounting.
_STILL = 0.02
# Seconds between two looks at calls and memory, where recycling asks for them.
_LOOK = 2.0
# Seconds until the same look is due again at the earliest, so that a stale sample never makes a busy loop.
_SOON = 0.1


class _Worker:
    """One worker that is not gone."""

    __slots__ = (
        "asked_at",
        "baseline",
        "cpu_seconds",
        "due",
        "id",
        "lingers",
        "moved_at",
        "ready_at",
        "retiring_since",
        "sample",
        "sampled_at",
        "served",
        "state",
        "unwanted",
    )

    def __init__(self, worker: int, now: float) -> None:
        self.id = worker
        self.state = WorkerState.STARTING
        self.ready_at = now
        self.baseline = 0
        self.served = False
        self.sample: Sample | None = None
        self.sampled_at = now
        self.asked_at: float | None = None  # when the ping was sent that it has not answered
        self.cpu_seconds = 0.0
        self.moved_at = now  # when it was last seen to have used the processor
        self.due: str | None = None  # why it is to be replaced
        self.retiring_since: float | None = None
        self.lingers = False  # it was let go, and is not waited for
        self.unwanted = False  # its end was decided here, and blames nobody

    def move(self, event: WorkerEvent) -> bool:
        """Change the state by the table; False where it has no place for the event: it came too late."""
        following = WORKER_TRANSITIONS.get((self.state, event))
        if following is None:
            return False
        self.state = following
        return True

    @property
    def serves(self) -> bool:
        return self.state is WorkerState.READY

    @property
    def counts(self) -> bool:
        """Whether it is one of those that the pool wants to have."""
        return self.state is WorkerState.READY or self.state is WorkerState.STARTING

    def idle_for(self, now: float) -> float:
        """Seconds it has been idle for by its last sample."""
        if self.sample is None:
            return now - self.ready_at
        return self.sample.idle_for if self.sample.in_flight == 0 else 0.0


class Policy:
    """Decides over the workers of one pool. Every event returns what is to be done, in this order.

    Args:
        minimum: workers that are kept alive once one was wanted; 0 is allowed.
        maximum: workers there may be, but for one more while one is being replaced.
        restart, breaker, recycle: the service's options.
        health_interval: seconds between two pings; None for none.
        idle_timeout: seconds after which an idle worker beyond the minimum is retired.
        random: draws from [0, 1).

    Attributes:
        idle_timeout: as given; it may be changed, before ``scale``.
        state: of the pool.
        next_wake: when ``tick`` wants to be called at the latest; None: not before the next event.
        restarts: how many workers were started because one ended unexpectedly, in all.

    Raises:
        ValueError: the minimum or maximum is wrong.
    """

    def __init__(
        self,
        *,
        minimum: int,
        maximum: int,
        restart: Restart,
        breaker: Breaker,
        recycle: Recycle,
        health_interval: float | None,
        idle_timeout: float,
        random: Callable[[], float],
    ) -> None:
        _check_bounds(minimum, maximum)
        self._minimum = minimum
        self._maximum = maximum
        self._restart = restart
        self._breaker = breaker
        self._recycle = recycle
        growth = recycle.memory_growth
        self._memory_growth = None if growth is None else parse_size(growth)
        self._health_interval = health_interval
        self.idle_timeout = idle_timeout
        self._random = random

        self.state = PoolState.NEW
        self.next_wake: float | None = None
        self.restarts = 0
        self._workers: dict[int, _Worker] = {}
        self._started = 0  # ids are given in order
        self._target = 0  # workers the pool wants to have
        self._held = False  # after a fatal failure: nothing is started until somebody asks
        # Restarting:
        self._row = 0  # failures without a worker that served in between
        self._lost = 0  # unexpected ends that no restart has answered yet
        self._restarted: deque[float] = deque()  # when, within the window
        self._resume_at = 0.0  # nothing is started before
        # The breaker:
        self._reason = ""
        self._until = 0.0
        self._opened_at = 0.0
        self._closed_at: float | None = None
        self._in_vain = 0  # how often it opened again too soon
        self._probe: int | None = None
        self._asked = False  # somebody wants a worker since it is half-open
        # Replacing and looking:
        self._replacing: tuple[int, int] | None = None  # old, new; until the old one is gone
        self._next_ping = 0.0
        self._next_look = 0.0
        self._ticked = 0.0

    # --- events

    def wanted(self, now: float, waiting: int) -> list[Action]:
        """Callers wait for a worker.

        Args:
            waiting: how many workers' worth of them stand in the queue; 0 from ``start()``.
        """
        self._move(PoolEvent.WANTED)
        self._cool(now)
        self._held = False
        self._asked = True
        starting = sum(one.state is WorkerState.STARTING for one in self._workers.values())
        needed = self._count() + max(0, waiting - starting)
        self._target = min(self._maximum, max(self._target, self._minimum, needed))
        return self._settle(now, [])

    def ready(self, worker: int, now: float, rss: int) -> list[Action]:
        """A worker that was to be started is ready for calls; ``rss`` is its resident memory in bytes."""
        actions: list[Action] = []
        one = self._find(worker)
        if one is not None and one.move(WorkerEvent.READY) and one.serves:
            one.ready_at = one.sampled_at = now
            one.baseline = rss
            others = any(other.serves for other in self._workers.values() if other is not one)
            if self._health_interval is not None and not others:
                self._next_ping = now + self._health_interval
            if not others:
                self._next_look = now + _LOOK
            if self._replacing is not None and self._replacing[1] == worker:
                old = self._workers.get(self._replacing[0])
                if old is not None and old.serves:
                    self._retire(old, old.due or "replaced", actions)
        return self._settle(now, actions)

    def failed(self, worker: int, now: float, reason: str, *, fatal: bool = False) -> list[Action]:
        """A worker could not be started.

        Args:
            reason: for whoever is refused because of it.
            fatal: trying again will not help. Nothing is started until the next ``wanted``; who is waiting now will
                not be served, and is to be told.
        """
        actions: list[Action] = []
        one = self._find(worker)
        reloaded = one is not None and self._give_up_reload(one)
        if one is not None and one.move(WorkerEvent.FAILED):
            self._forget(one)
            if reloaded:
                pass  # whoever asked for it is told
            elif fatal and not one.unwanted:
                self._held = True
                if self._probe == worker:
                    self._disprove(now, reason, actions)
            elif not one.unwanted:
                self._count_failure(one, now, reason, actions)
        return self._settle(now, actions)

    def ended(self, worker: int, now: float, cause: Cause, reason: str) -> list[Action]:
        """A worker's process ended."""
        actions: list[Action] = []
        one = self._find(worker)
        if one is not None:
            blamed = cause in FAILURES and not one.unwanted
            started = one.state is WorkerState.STARTING
            if one.move(WorkerEvent.ENDED):
                self._forget(one)
                # Callers may have queued for this one, and nobody tells of them again.
                self._asked = True
                self._held = self._held and started
                if blamed:
                    self._count_failure(one, now, reason, actions)
                elif self._probe == worker:
                    self._probe = None  # it proved nothing; another one is tried
        return self._settle(now, actions)

    def succeeded(self, worker: int, now: float) -> list[Action]:
        """A worker served a call: to be told of its first one, and of every one while the breaker is half-open."""
        actions: list[Action] = []
        one = self._find(worker)
        if one is not None:
            one.served = True
            if self.state is PoolState.RUNNING:
                self._row = 0
                self._resume_at = now
            elif self.state is PoolState.HALF_OPEN and (self._probe == worker or one.ready_at > self._opened_at):
                self._prove(now, actions)
        return self._settle(now, actions)

    def sampled(self, worker: int, now: float, sample: Sample) -> list[Action]:
        """What is known of a worker now; to be told of all of them before each ``tick``, which judges them."""
        one = self._find(worker)
        if one is not None:
            one.sample = sample
            one.sampled_at = now
            if sample.pong_age is None:
                one.asked_at = None
            if sample.cpu_seconds - one.cpu_seconds >= _STILL:
                one.cpu_seconds = sample.cpu_seconds
                one.moved_at = now
        return []

    def scale(self, now: float, minimum: int, maximum: int) -> list[Action]:
        """Other bounds from now on.

        Raises:
            ValueError: they are wrong.
        """
        _check_bounds(minimum, maximum)
        self._minimum = minimum
        self._maximum = maximum
        if self.state not in (PoolState.NEW, PoolState.CLOSED):
            self._target = min(maximum, max(minimum, self._target))
        return self._settle(now, [])

    def reload(self, now: float) -> list[Action]:
        """Replace every worker, one after another."""
        for one in self._workers.values():
            if one.counts:
                one.due = _RELOADED
        return self._settle(now, [])

    def close(self, now: float) -> list[Action]:
        """Retire every worker, and start none again."""
        actions: list[Action] = []
        self._move(PoolEvent.CLOSE)
        for one in self._workers.values():
            self._dismiss(one, "the pool is closed", actions)
        return self._settle(now, actions)

    def tick(self, now: float) -> list[Action]:
        """Time has passed, and every worker was sampled."""
        actions: list[Action] = []
        self._ticked = now
        if self.state is not PoolState.CLOSED:
            self._judge(now, actions)
            self._ping(now, actions)
            self._settle_probe(now, actions)
            self._shrink(now, actions)
            self._mark_due(now)
        return self._settle(now, actions)

    # --- what others may know

    def refusal(self, now: float) -> Refusal | None:
        """What a caller without a worker is told now; None: it may wait. Also to be asked for those who wait already,
        after every event that returned ``OpenBreaker`` or told a worker's end."""
        if self.state is PoolState.OPEN and now < self._until:
            if not any(one.serves for one in tuple(self._workers.values())):
                return Refusal(self._reason, self._until - now)
        elif self.state is PoolState.CLOSED:
            return Refusal("the pool is closed", None)
        return None

    @property
    def workers(self) -> dict[int, WorkerState]:
        """The state of every worker that is not gone, oldest first. From any thread."""
        return {one.id: one.state for one in tuple(self._workers.values())}

    # --- states

    def _move(self, event: PoolEvent) -> bool:
        following = POOL_TRANSITIONS.get((self.state, event))
        if following is None:
            return False
        self.state = following
        return True

    def _find(self, worker: int) -> _Worker | None:
        """None: it is gone already, and this report of it came late."""
        if not 0 < worker <= self._started:
            raise ValueError(f"worker {worker}: there never was one; ids are those of Start")
        return self._workers.get(worker)

    def _forget(self, one: _Worker) -> None:
        del self._workers[one.id]
        if self._replacing is not None:
            old, new = self._replacing
            # A new one that is lost while the old one drains leaves room for another: the pair ends with the old one.
            if one.id == old or (one.id == new and old in self._workers and self._workers[old].serves):
                self._replacing = None

    def _give_up_reload(self, one: _Worker) -> bool:
        """Whether one that could not be started was to bring new code: then the others are left as they are too."""
        pair = self._pair()
        if pair is None or pair[1] != one.id or self._workers[pair[0]].due != _RELOADED:
            return False
        for other in self._workers.values():
            if other.due == _RELOADED:
                other.due = None
        return True

    def _let_linger(self, now: float) -> None:
        for one in self._workers.values():
            if one.state is not WorkerState.RETIRING or one.lingers:
                continue
            if one.retiring_since is None:
                one.retiring_since = now
            if now >= one.retiring_since + _DRAIN:
                one.lingers = True
                if self._replacing is not None and self._replacing[0] == one.id:
                    self._replacing = None

    def _processes(self) -> int:
        return sum(not one.lingers for one in self._workers.values())

    def _count(self) -> int:
        """Workers that are there or on their way; a replacement counts once the old one does not."""
        return sum(one.counts for one in self._workers.values()) - (self._pair() is not None)

    def _pair(self) -> tuple[int, int] | None:
        """The old worker and its replacement, while both count."""
        if self._replacing is None:
            return None
        old, new = (self._workers.get(worker) for worker in self._replacing)
        return self._replacing if old is not None and new is not None and old.counts and new.counts else None

    def _retire(self, one: _Worker, why: str, actions: list[Action]) -> None:
        if one.move(WorkerEvent.RETIRE):
            one.unwanted = True
            actions.append(Retire(one.id, why))

    def _kill(self, one: _Worker, why: str, cause: Cause, actions: list[Action]) -> None:
        if one.move(WorkerEvent.KILL):
            actions.append(Kill(one.id, why, cause))

    def _dismiss(self, one: _Worker, why: str, actions: list[Action]) -> None:
        """Let a worker go that nobody needs."""
        if one.state is WorkerState.STARTING:
            one.unwanted = True
            if self._probe == one.id:
                self._probe = None
            self._kill(one, why, Cause.RETIRED, actions)
        else:
            self._retire(one, why, actions)

    # --- failures and the breaker

    def _count_failure(self, one: _Worker, now: float, reason: str, actions: list[Action]) -> None:
        self._row = max(1, self._row) if one.served else self._row + 1
        self._reason = reason
        if self.state is PoolState.HALF_OPEN and self._probe == one.id:
            self._disprove(now, reason, actions)
        if self.state is not PoolState.RUNNING:
            return
        self._lost += 1
        while self._restarted and self._restarted[0] <= now - self._restart.window:
            self._restarted.popleft()
        allowed = self._restart.max_restarts * max(1, self._target)
        if self._row >= self._breaker.failures:
            row = "1 worker failed" if self._row == 1 else f"{self._row} workers failed one after another; the last"
            self._trip(now, f"{row}: {reason}", actions)
        elif len(self._restarted) + self._lost > allowed:
            many = f"{len(self._restarted)} restart" + "s" * (len(self._restarted) != 1)
            why = f"crash loop: another end after {many} within {self._restart.window:g} s: {reason}"
            self._trip(now, why, actions)
        elif self._row > 1:
            # 2 ** 64 of whatever is far beyond any maximum, and 2 ** 1024 no longer a float.
            pause = self._restart.backoff * 2.0 ** min(self._row - 2, 64) * (0.75 + 0.5 * self._random())
            self._resume_at = now + min(pause, self._restart.backoff_max)

    def _trip(self, now: float, reason: str, actions: list[Action]) -> None:
        # Whoever opens soon after closing was closed too soon.
        soon = self._closed_at is not None and now - self._closed_at <= self._restart.window
        self._in_vain = self._in_vain + 1 if soon else 0
        self._move(PoolEvent.TRIPPED)
        self._open(now, reason, actions)

    def _disprove(self, now: float, reason: str, actions: list[Action]) -> None:
        if self._move(PoolEvent.DISPROVED):
            self._in_vain += 1
            self._open(now, f"the worker that was tried failed too: {reason}", actions)

    def _open(self, now: float, reason: str, actions: list[Action]) -> None:
        self._reason = reason
        self._opened_at = now
        self._until = now + self._breaker.cooldown * min(2.0 ** min(self._in_vain, 64), _LONGEST_COOLDOWN)
        self._probe = None
        self._resume_at = now
        actions.append(OpenBreaker(reason, self._until))

    def _cool(self, now: float) -> None:
        if self.state is PoolState.OPEN and now >= self._until:
            self._move(PoolEvent.COOLED)
            self._asked = False
            # One that was already starting when it opened is as good a probe as another.
            starting = [one.id for one in self._workers.values() if one.state is WorkerState.STARTING]
            self._probe = starting[-1] if starting else None

    def _prove(self, now: float, actions: list[Action]) -> None:
        if self._move(PoolEvent.PROVED):
            self._closed_at = self._resume_at = now
            self._row = self._lost = 0
            self._restarted.clear()
            self._probe = None
            actions.append(CloseBreaker())

    def _proves_at(self, one: _Worker) -> float:
        """When a ready probe has proved itself without a successful call."""
        called = one.sample is not None and (one.sample.in_flight > 0 or one.sample.calls > 0)
        return one.ready_at + (self._breaker.cooldown if called else min(_UNCALLED, self._breaker.cooldown))

    def _settle_probe(self, now: float, actions: list[Action]) -> None:
        if self.state is PoolState.HALF_OPEN and self._probe is not None:
            one = self._workers.get(self._probe)
            if one is not None and one.serves and now >= self._proves_at(one):
                self._prove(now, actions)

    # --- looking at workers

    def _judge(self, now: float, actions: list[Action]) -> None:
        """Kill who gives no sign of life."""
        interval = self._health_interval
        if interval is None:
            return
        if now > self._next_ping + interval:
            # This process itself did not run, so it has not read the answers either: they get their time anew.
            for one in self._workers.values():
                one.asked_at = None if one.asked_at is None else now
        patience = 0.999 * interval  # timers do not come to the bit
        for one in self._workers.values():
            if one.asked_at is None or one.sample is None:
                continue
            unanswered = now - one.asked_at
            quiet = now - max(one.asked_at, one.moved_at)
            idle = one.sample.in_flight == 0
            if one.sample.stopped and unanswered >= 2 * patience:
                self._kill(one, f"stopped, and no answer for {unanswered:.1f} s", Cause.UNRESPONSIVE, actions)
            elif quiet >= (2 if idle else 3) * patience:
                doing = "idle" if idle else "in a call"
                why = f"no answer for {unanswered:.1f} s, {doing}, without using the processor"
                self._kill(one, why, Cause.UNRESPONSIVE, actions)

    def _ping(self, now: float, actions: list[Action]) -> None:
        if self._health_interval is None or now < self._next_ping:
            return
        self._next_ping = now + self._health_interval
        for one in self._workers.values():
            if one.state in (WorkerState.READY, WorkerState.RETIRING) and one.asked_at is None:
                one.asked_at = now
                actions.append(Ping(one.id))

    def _shrink(self, now: float, actions: list[Action]) -> None:
        idle = [one for one in self._workers.values() if one.serves and one.idle_for(now) >= self.idle_timeout]
        idle.sort(key=lambda one: -one.idle_for(now))
        for one in idle[: max(0, self._count() - self._minimum)]:
            self._retire(one, f"idle for {one.idle_for(now):.0f} s", actions)
            self._target = max(self._minimum, self._target - 1)

    def _mark_due(self, now: float) -> None:
        """Find out who is to be recycled."""
        if now >= self._next_look:
            self._next_look = now + _LOOK
        recycle = self._recycle
        for one in self._workers.values():
            if not one.serves or one.due is not None:
                continue
            if recycle.age is not None and now >= one.ready_at + recycle.age:
                one.due = f"recycled at the age of {recycle.age:g} s"
            if one.sample is None:
                continue
            if recycle.calls is not None and one.sample.calls >= recycle.calls:
                one.due = f"recycled after {one.sample.calls} calls"
            growth = one.sample.rss - one.baseline
            if self._memory_growth is not None and growth >= self._memory_growth:
                one.due = f"recycled as its memory grew by {growth / 1e6:.0f} MB"

    # --- what follows from the state

    def _settle(self, now: float, actions: list[Action]) -> list[Action]:
        """Do what is due in the state that the event led to."""
        if self.state is PoolState.CLOSED:
            self.next_wake = None
            return actions
        self._cool(now)
        self._shed(actions)
        self._let_linger(now)
        due = any(one.serves and one.due is not None for one in self._workers.values())
        self._lost = min(self._lost, max(0, self._target - self._count()) + due)
        if not self._held and now >= self._resume_at:
            self._fill(now, actions)
            self._replace(now, actions)
        self.next_wake = self._wake(now)
        return actions

    def _shed(self, actions: list[Action]) -> None:
        """Let go what is beyond the maximum: who is not ready yet, who would go anyway, who is idle for longest."""
        excess = self._count() - self._maximum
        if excess <= 0:
            return
        # Letting one of a pair go would make the other count. Without them there are enough.
        pair = self._pair() or ()
        going = sorted(
            (one for one in self._workers.values() if one.counts and one.id not in pair),
            key=lambda one: (one.serves, one.due is None, -one.idle_for(one.sampled_at)),
        )
        for one in going[:excess]:
            self._dismiss(one, "the pool is scaled down", actions)

    def _room(self) -> int:
        """How many more processes there may be."""
        return self._maximum + (self._replacing is not None) - self._processes()

    def _may_probe(self) -> bool:
        return self._probe is None and (self._asked or any(one.serves for one in self._workers.values()))

    def _fill(self, now: float, actions: list[Action]) -> None:
        """Start what is missing: everything at once, or the one probe."""
        missing = min(self._target - self._count(), self._room())
        if self.state is PoolState.HALF_OPEN:
            missing = min(missing, 1) if self._may_probe() else 0
        elif self.state is not PoolState.RUNNING:
            missing = 0
        for _ in range(missing):
            self._start(now, None, actions)

    def _replace(self, now: float, actions: list[Action]) -> None:
        """Start the replacement of one worker that is due, when none is missing."""
        if self._replacing is not None or self.state not in (PoolState.RUNNING, PoolState.HALF_OPEN):
            return
        due = [one for one in self._workers.values() if one.serves and one.due is not None]
        # Who retires or is being killed is a process too: with it and the new one there would be two too many.
        if not due or self._count() < self._target or self._processes() > self._maximum:
            return
        if self.state is PoolState.HALF_OPEN and not self._may_probe():
            return
        new = self._start(now, due[0].id, actions)
        self._replacing = (due[0].id, new)

    def _start(self, now: float, replaces: int | None, actions: list[Action]) -> int:
        self._started += 1
        self._workers[self._started] = _Worker(self._started, now)
        if self.state is PoolState.HALF_OPEN:
            self._probe = self._started
        restart = self._lost > 0
        if restart:
            self._lost -= 1
            self._restarted.append(now)
        if restart or self._probe == self._started:
            self.restarts += 1
        actions.append(Start(self._started, replaces, restart or self._probe == self._started))
        return self._started

    def _wake(self, now: float) -> float | None:
        """The next time at which something is due without an event.

        It has passed only where an event came between that time and the ``tick`` that it called for.
        """
        looks = []  # what a tick sees to, by the samples that come with it
        serving = [one for one in self._workers.values() if one.serves]
        if self._health_interval is not None and any(
            one.state in (WorkerState.READY, WorkerState.RETIRING) for one in self._workers.values()
        ):
            looks.append(self._next_ping)
        if serving and (self._recycle.calls is not None or self._memory_growth is not None):
            looks.append(self._next_look)
        if self._recycle.age is not None:
            looks += [one.ready_at + self._recycle.age for one in serving if one.due is None]
        if self.state is PoolState.HALF_OPEN:
            looks += [self._proves_at(one) for one in serving if one.id == self._probe]
        if self._count() > self._minimum:
            looks += [one.sampled_at + self.idle_timeout - one.idle_for(one.sampled_at) for one in serving]
        times = [max(look, self._ticked + _SOON) for look in looks]
        times += [
            one.retiring_since + _DRAIN
            for one in self._workers.values()
            if one.retiring_since is not None and not one.lingers and one.state is WorkerState.RETIRING
        ]
        if self.state is PoolState.OPEN:
            times.append(self._until)
        if self._resume_at > now and not self._held:
            times.append(self._resume_at)
        return min(times, default=None)


def _check_bounds(minimum: int, maximum: int) -> None:
    if not 0 <= minimum <= maximum or maximum < 1:
        raise ValueError(
            f"workers from {minimum} to {maximum}: expected 0 <= minimum <= maximum, with a maximum of at least 1"
        )
