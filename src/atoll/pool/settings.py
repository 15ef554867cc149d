# SPDX-License-Identifier: Apache-2.0
"""How a pool is to be: the options of a service that concern its workers as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..manifest import ServiceSpec
    from ..manifest.options import Breaker, Recycle, Restart

# Seconds after which a worker beyond the minimum is let go, if nobody said otherwise.
IDLE_TIMEOUT = 60.0


class PoolSettings(NamedTuple):
    """See the options of ``atoll.Service``.

    Attributes:
        workers: how many there are, until ``scale`` says otherwise.
        concurrency: calls that one worker takes at a time.
        max_queue: callers that may wait.
        objects: what workers call ``host.NAME``.
    """

    workers: int = 1
    concurrency: int = 1
    max_queue: int = 100_000
    restart: Restart | None = None
    breaker: Breaker | None = None
    recycle: Recycle | None = None
    health_interval: float | None = 10.0
    objects: Mapping[str, Any] = {}


def settings_of(spec: ServiceSpec, objects: Mapping[str, Any] | None) -> PoolSettings:
    """The settings that a spec asks for.

    Args:
        objects: host objects, by name.
    """
    return PoolSettings(
        workers=spec.workers,
        concurrency=spec.concurrency,
        max_queue=spec.max_queue,
        restart=spec.restart,
        breaker=spec.breaker,
        recycle=spec.recycle,
        health_interval=spec.health_interval,
        objects=dict(objects or {}),
    )
