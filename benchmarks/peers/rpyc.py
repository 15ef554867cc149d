# SPDX-License-Identifier: Apache-2.0
"""rpyc: a service in another process, over a Unix socket.

rpyc hands a dict out by reference, and every look into it would be a call of its own. The service therefore
returns the dict's items, a tuple that travels by value, which is the fastest idiom rpyc has for this call.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import rpyc
from rpyc.utils.server import OneShotServer

from benchmarks.workload import detect

ASYNCHRONOUS = False


def describe() -> dict[str, Any]:
    return {"version": ".".join(map(str, rpyc.version.version)), "result": "items by value"}


class Vision(rpyc.Service):
    def exposed_detect(self, *arguments: Any, **keywords: Any) -> tuple[tuple[str, Any], ...]:
        return tuple(detect(*arguments, **keywords).items())


def answer(path: str, control: Connection) -> None:
    """The child: serves one connection, until it is closed."""
    server = OneShotServer(Vision, socket_path=path)
    server.listener.listen(1)  # start() does it too, but only after "ready" would have been said
    control.send("ready")
    server.start()


@contextmanager
def opened() -> Iterator[Callable[..., Any]]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        here, there = context.Pipe()
        process = context.Process(target=answer, args=(path, there), daemon=True)
        process.start()
        there.close()
        here.recv()
        connection = rpyc.utils.factory.unix_connect(path)
        remote = connection.root.detect

        def call(*arguments: Any, **keywords: Any) -> Any:
            return dict(remote(*arguments, **keywords))

        try:
            yield call
        finally:
            connection.close()
            process.join()
