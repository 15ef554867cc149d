# SPDX-License-Identifier: Apache-2.0
"""What a function and a service have in common: a pool of their own, which can be started and closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from ..pool import Pool

if TYPE_CHECKING:
    from ..manifest import ServiceSpec


class HoldsWorker:
    """Base of what holds a worker of this process, and so can be neither pickled nor copied."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} holds a worker of this process, so it can be neither pickled nor copied; define it where it is "
            "used, such as in the module that the other process imports"
        )


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
        """Process id of the present worker, or None while there is none."""
        worker = self._pool.worker
        return worker.process.pid if worker is not None and worker.alive else None

    def start(self) -> None:
        """Have a worker ready, building the environment if need be, so that the first call need not.

        Raises:
            EnvironmentError, WorkerStartError, WorkerDied, ServiceClosed: see there.
        """
        self._pool.start()

    def close(self) -> None:
        """Tear the service down and stop its worker. Later calls raise ``ServiceClosed``. Idempotent."""
        self._pool.close()
