# SPDX-License-Identifier: Apache-2.0
"""pyzmq: a REQ and a REP socket over ipc between two processes, Python objects pickled by pyzmq itself."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from benchmarks.workload import detect

ASYNCHRONOUS = False


def describe() -> dict[str, Any]:
    return {"version": zmq.__version__, "libzmq": zmq.zmq_version()}


def answer(address: str) -> None:
    """The child: one request, one reply, until None is asked for."""
    with zmq.Context() as context, context.socket(zmq.REP) as replies:
        replies.bind(address)
        while (request := replies.recv_pyobj()) is not None:
            arguments, keywords = request
            replies.send_pyobj(detect(*arguments, **keywords))
        replies.send_pyobj(None)


@contextmanager
def opened() -> Iterator[Callable[..., Any]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        zmq.Context() as context,
        context.socket(zmq.REQ) as requests,
    ):
        address = f"ipc://{folder}/socket"
        process = multiprocessing.get_context("spawn").Process(target=answer, args=(address,), daemon=True)
        process.start()
        requests.connect(address)

        def call(*arguments: Any, **keywords: Any) -> Any:
            requests.send_pyobj((arguments, keywords))
            return requests.recv_pyobj()

        try:
            yield call
        finally:
            requests.send_pyobj(None)
            requests.recv_pyobj()
            process.join()
