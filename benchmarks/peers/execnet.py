# SPDX-License-Identifier: Apache-2.0
"""execnet: a popen gateway, a loop executed on its far side, requests and replies as items of one channel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import execnet

from benchmarks import workload

ASYNCHRONOUS = False

FAR_SIDE = f"""
from typing import Any

{inspect.getsource(workload.detect)}

for arguments, keywords in channel:
    channel.send(detect(*arguments, **keywords))
"""


def describe() -> dict[str, Any]:
    return {"version": execnet.__version__}


@contextmanager
def opened() -> Iterator[Callable[..., Any]]:
    group = execnet.Group()
    try:
        channel = group.makegateway("popen").remote_exec(FAR_SIDE)

        def call(*arguments: Any, **keywords: Any) -> Any:
            channel.send((arguments, keywords))
            return channel.receive()

        yield call
    finally:
        group.terminate(timeout=2.0)
