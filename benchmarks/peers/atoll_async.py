# SPDX-License-Identifier: Apache-2.0
"""atoll awaited: the same function's ``.aio``, natively on the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import atoll
from benchmarks.peers.atoll_sync import describe, detect

__all__ = ["ASYNCHRONOUS", "describe", "opened"]

ASYNCHRONOUS = True


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[..., Any]]:
    try:
        await detect.aio(0)
        yield detect.aio
    finally:
        detect.close()
        atoll.shutdown()
