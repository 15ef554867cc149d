# SPDX-License-Identifier: Apache-2.0
"""What a function and a service have in common: a pool of their own, which can be started and closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn

from ..errors import ManifestError
from ..pool import Pool

if TYPE_CHECKING:
    from ..manifest import ServiceSpec
    from ..pool.metrics import Metric
    from ..pool.status import PoolStatus


class HoldsWorker:
    """Base of what holds a worker of this process, and so can be neither pickled nor copied."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} holds a worker of this process, so it can be neither pickled nor copied; define it where it is "
            "used, such as in the module that the other process imports"
        )


def check_objects(objects: Mapping[str, object] | None) -> Mapping[str, object]:
    """The host objects as given.

    Raises:
        ManifestError: they are no mapping of names to objects.
    """
    if objects is None:
        return {}
    if not isinstance(objects, Mapping):
        raise ManifestError(f"option host: found {objects!r:.100}, expected a mapping of names to objects")
    for name in objects:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise ManifestError(
                f"option host: found the name {name!r}, expected an identifier without leading underscore"
            )
    return objects


def check_seconds(option: str, seconds: float | None) -> float | None:
    """The seconds as given.

    Raises:
        ManifestError: they are no number above zero.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise ManifestError(f"option {option}: found {seconds!r}, expected seconds above zero, or None for no limit")
    return seconds


class PoolOwner(HoldsWorker):
    """Base of ``Function`` and ``Service``."""

    _pool: Pool
    _spec: ServiceSpec

    @property
    def spec(self) -> ServiceSpec:
        """What the source and the options came to."""
        return self._spec

    @property
    def pid(self) -> int | None:
        """Process id of a present worker, the oldest one; None while there is none. ``status()`` knows them all."""
        for worker in self._pool.workers:
            if worker.alive:
                return worker.pid
        return None

    def start(self) -> None:
        """Have the workers ready, building the environment if need be, so that the first call need not.

        Raises:
            EnvironmentError, WorkerStartError, WorkerDied, CircuitOpen, ServiceClosed: see there.
        """
        self._pool.start()

    def status(self) -> PoolStatus:
        """How its workers are now: state, queue, latency, and of each worker process id, calls, memory. Printable."""
        return self._pool.status()

    def metrics(self) -> Iterator[Metric]:
        """Counters, gauges and histograms, under the names that Prometheus users expect; see ``atoll.prometheus``."""
        return self._pool.metrics()

    def scale(self, min: int, max: int, idle: float | None = None) -> None:
        """From now on keep between ``min`` and ``max`` workers: one more for every caller that waits, one fewer for
        each that is idle.

        Args:
            min: workers that are kept, 0 included: then the next call starts one.
            max: workers there are at most.
            idle: seconds after which a worker beyond ``min`` is let go; 60 if never said.

        Raises:
            ManifestError: the bounds are wrong.
        """
        for name, bound in (("min", min), ("max", max)):
            if isinstance(bound, bool) or not isinstance(bound, int) or not 0 <= bound <= 1000:
                raise ManifestError(f"option {name} of scale: found {bound!r}, expected a number of workers, 0 to 1000")
        if min > max or max < 1:
            raise ManifestError(f"scale(min={min}, max={max}): expected min <= max, and max at least 1")
        self._pool.scale(min, max, check_seconds("idle of scale", idle))

    def reload(self, timeout: float | None = None) -> None:
        """Read the source anew and replace every worker, one after another; no call fails, and open streams are served
        to their end. What the source says of the pool itself (``workers``, ``timeout``, ...) stays as it was.

        Args:
            timeout: seconds to wait until that is done.

        Raises:
            WorkerStartError, WorkerDied, EnvironmentError, ManifestError: the present code cannot be started; the
                workers there are go on with theirs.
            TimeoutError: it takes longer; it goes on.
        """
        self._pool.reload(check_seconds("timeout of reload", timeout))

    def close(self) -> None:
        """Tear the service down and stop its workers. Later calls raise ``ServiceClosed``. Idempotent."""
        self._pool.close()
