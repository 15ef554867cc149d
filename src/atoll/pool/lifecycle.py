# SPDX-License-Identifier: Apache-2.0
"""The words of the supervision policy: states and what changes them, what it is told, and what it has done.

What always holds here: the two tables are all the transitions there are; ``policy`` takes none that is not in them,
and docs/supervision.svg is drawn from them. What does not belong here: when to do what (``policy``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class WorkerState(enum.StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    RETIRING = "retiring"
    ENDING = "ending"
    GONE = "gone"


class WorkerEvent(enum.StrEnum):
    """What moves a worker from one state to the next."""

    READY = "is ready"
    FAILED = "could not start"
    ENDED = "ended"
    RETIRE = "retire"
    KILL = "kill"


WORKER_TRANSITIONS: Mapping[tuple[WorkerState, WorkerEvent], WorkerState] = MappingProxyType(
    {
        (WorkerState.STARTING, WorkerEvent.READY): WorkerState.READY,
        (WorkerState.STARTING, WorkerEvent.FAILED): WorkerState.GONE,
        (WorkerState.STARTING, WorkerEvent.ENDED): WorkerState.GONE,
        (WorkerState.STARTING, WorkerEvent.KILL): WorkerState.ENDING,  # it has no call that could be drained
        (WorkerState.READY, WorkerEvent.ENDED): WorkerState.GONE,
        (WorkerState.READY, WorkerEvent.RETIRE): WorkerState.RETIRING,
        (WorkerState.READY, WorkerEvent.KILL): WorkerState.ENDING,
        (WorkerState.RETIRING, WorkerEvent.ENDED): WorkerState.GONE,
        (WorkerState.RETIRING, WorkerEvent.KILL): WorkerState.ENDING,
        (WorkerState.ENDING, WorkerEvent.READY): WorkerState.ENDING,  # the kill was on its way
        (WorkerState.ENDING, WorkerEvent.FAILED): WorkerState.GONE,
        (WorkerState.ENDING, WorkerEvent.ENDED): WorkerState.GONE,
    }
)


class PoolState(enum.StrEnum):
    """Where a pool is; open and half-open are its breaker's."""

    NEW = "new"
    RUNNING = "running"
    OPEN = "open"
    HALF_OPEN = "half-open"
    CLOSED = "closed"


class PoolEvent(enum.StrEnum):
    """What moves a pool from one state to the next."""

    WANTED = "first wanted"
    TRIPPED = "failures in a row, or crash loop"
    COOLED = "cooldown over"
    PROVED = "probe serves"
    DISPROVED = "probe fails"
    CLOSE = "close"


POOL_TRANSITIONS: Mapping[tuple[PoolState, PoolEvent], PoolState] = MappingProxyType(
    {
        (PoolState.NEW, PoolEvent.WANTED): PoolState.RUNNING,
        (PoolState.RUNNING, PoolEvent.TRIPPED): PoolState.OPEN,
        (PoolState.OPEN, PoolEvent.COOLED): PoolState.HALF_OPEN,
        (PoolState.HALF_OPEN, PoolEvent.PROVED): PoolState.RUNNING,
        (PoolState.HALF_OPEN, PoolEvent.DISPROVED): PoolState.OPEN,
        (PoolState.NEW, PoolEvent.CLOSE): PoolState.CLOSED,
        (PoolState.RUNNING, PoolEvent.CLOSE): PoolState.CLOSED,
        (PoolState.OPEN, PoolEvent.CLOSE): PoolState.CLOSED,
        (PoolState.HALF_OPEN, PoolEvent.CLOSE): PoolState.CLOSED,
        (PoolState.CLOSED, PoolEvent.CLOSE): PoolState.CLOSED,
    }
)


class Cause(enum.StrEnum):
    """Why a worker's process ended."""

    CRASHED = "crashed"
    OUT_OF_MEMORY = "out of memory"
    UNRESPONSIVE = "unresponsive"
    CANCELLED = "cancelled"
    RETIRED = "retired"


FAILURES = frozenset((Cause.CRASHED, Cause.OUT_OF_MEMORY, Cause.UNRESPONSIVE))


class Sample(NamedTuple):
    """What is known of a worker at one moment.

    Attributes:
        calls: that it has finished since it was ready.
        in_flight: calls it is running.
        rss: resident memory in bytes.
        idle_for: seconds since its last call ended, or since it was ready; 0 while a call runs.
        cpu_seconds: processor time it has used in all.
        stopped: its process is stopped (state T).
        pong_age: seconds since it last answered a ping; None if no ping is outstanding.
    """

    calls: int
    in_flight: int
    rss: int
    idle_for: float
    cpu_seconds: float
    stopped: bool
    pong_age: float | None


class Start(NamedTuple):
    """Start a worker. ``replaces`` is the one to be retired when it is ready; ``restart``: after an unexpected end."""

    worker: int
    replaces: int | None = None
    restart: bool = False


class Retire(NamedTuple):
    """Give a worker no new calls, and stop it in order once it is idle. Its end is then ``Cause.RETIRED``."""

    worker: int
    why: str


class Kill(NamedTuple):
    """End a worker, or the attempt to start it, now. Tell its end with this cause."""

    worker: int
    why: str
    cause: Cause


class Ping(NamedTuple):
    """Ask a worker for a sign of life."""

    worker: int


class OpenBreaker(NamedTuple):
    """The breaker opened. ``until`` is the time of the next attempt."""

    reason: str
    until: float


class CloseBreaker(NamedTuple):
    """The breaker closed."""


Action = Start | Retire | Kill | Ping | OpenBreaker | CloseBreaker


class Refusal(NamedTuple):
    """Why a caller gets no worker now. ``retry_in``: seconds until it is worth trying; None: never again."""

    reason: str
    retry_in: float | None
