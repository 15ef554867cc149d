# SPDX-License-Identifier: Apache-2.0
"""How a pool is at one moment, for people and for metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from ..processes import usage
from .lifecycle import WorkerState
from .metrics import Latency, Snapshot

if TYPE_CHECKING:
    from .pool import Pool
    from .worker import Worker


class WorkerStatus(NamedTuple):
    """One worker.

    Attributes:
        pid: process id; 0 before there is a process.
        state: ``"starting"``, ``"ready"``, ``"retiring"`` or ``"ending"``.
        in_flight: calls it is running.
        calls: calls it has answered.
        rss: resident memory in bytes; 0 before there is a process.
        cpu: processor time it has used, in seconds.
        age: seconds since it became ready; 0 before.
    """

    pid: int
    state: str
    in_flight: int
    calls: int
    rss: int
    cpu: float
    age: float


class PoolStatus(NamedTuple):
    """A pool.

    Attributes:
        service: name of the service.
        state: ``"new"`` (nothing was wanted yet), ``"running"``, ``"open"`` or ``"half-open"`` (the breaker),
        ``"closed"``. workers: all that are not gone, oldest first.
        queue: calls that wait for a worker.
        in_flight: calls that workers are running.
        restarts: how many workers took the place of one that ended unexpectedly.
        latency: of the calls of about the last minute, in seconds.
        functions: the same by function.
    """

    service: str
    state: str
    workers: tuple[WorkerStatus, ...]
    queue: int
    in_flight: int
    restarts: int
    latency: Latency
    functions: dict[str, Latency]

    def __str__(self) -> str:
        def spelled(seconds: float | None) -> str:
            if seconds is None:
                return "-"
            return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"

        lines = [
            f"{self.service}: {self.state}, {len(self.workers)} workers, {self.in_flight} calls in flight, "
            f"{self.queue} waiting, {self.restarts} restarts",
            f"  latency p50 {spelled(self.latency.p50)}, p95 {spelled(self.latency.p95)}, "
            f"p99 {spelled(self.latency.p99)} ({self.latency.calls} calls)",
        ]
        lines += [
            f"  pid {one.pid}: {one.state}, {one.in_flight} in flight, {one.calls} calls, {one.rss / 1e6:.0f} MB, "
            f"{one.cpu:.2f} s of processor time, {one.age:.0f} s old"
            for one in self.workers
        ]
        return "\n".join(lines)


def status_of(pool: Pool) -> PoolStatus:
    """How a pool is now."""
    supervisor = pool.supervisor
    present = supervisor.workers
    states = supervisor.states()  # afterwards: who is not among them has ended, and is not one that begins
    now = time.monotonic()
    workers = []
    for worker in present:
        found = usage(worker.process.python_pid) if worker.process is not None else None
        workers.append(
            WorkerStatus(
                pid=worker.pid,
                state=str(_state_of(worker, states)),
                in_flight=pool.in_flight(worker),
                calls=worker.calls,
                rss=0 if found is None else found.rss,
                cpu=0.0 if found is None else found.cpu,
                age=now - worker.ready_at if worker.ready_at else 0.0,
            )
        )
    overall, functions = pool.latencies()
    return PoolStatus(
        service=pool.service,
        state=str(supervisor.state),
        workers=tuple(workers),
        queue=pool.waiting,
        in_flight=sum(one.in_flight for one in workers),
        restarts=pool.restarts,
        latency=overall,
        functions={name: one for name, one in functions.items() if not name.startswith("__")},
    )


def _state_of(worker: Worker, states: dict[int, WorkerState]) -> WorkerState:
    state = states.get(worker.number, WorkerState.ENDING)
    # It takes calls before the policy has heard of it.
    return WorkerState.READY if state is WorkerState.STARTING and worker.is_serving else state


def snapshot_of(pool: Pool) -> Snapshot:
    """What the gauges show."""
    status = status_of(pool)
    counts = {str(state): 0 for state in WorkerState if state is not WorkerState.GONE}
    for worker in status.workers:
        counts[worker.state] += 1
    return Snapshot(
        in_flight=status.in_flight,
        queue_depth=status.queue,
        workers=counts,
        resident_bytes={index: worker.rss for index, worker in enumerate(status.workers)},
        breaker_open=status.state in ("open", "half-open"),
    )
