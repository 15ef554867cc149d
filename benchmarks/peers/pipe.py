# SPDX-License-Identifier: Apache-2.0
"""``multiprocessing.Pipe`` and a bare loop in a child: the least the standard library offers, without any
supervision.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.workload import detect

ASYNCHRONOUS = False


def describe() -> dict[str, Any]:
    return {"start_method": "spawn"}


def answer(connection: Connection) -> None:
    """The child: one request, one reply, until the parent hangs up."""
    while True:
        try:
            arguments, keywords = connection.recv()
        except EOFError:
            return
        connection.send(detect(*arguments, **keywords))


@contextmanager
def opened() -> Iterator[Callable[..., Any]]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=answer, args=(there,), daemon=True)
    process.start()
    there.close()

    def call(*arguments: Any, **keywords: Any) -> Any:
        here.send((arguments, keywords))
        return here.recv()

    try:
        yield call
    finally:
        here.close()
        process.join()
