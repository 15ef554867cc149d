# SPDX-License-Identifier: Apache-2.0
"""grpcio: a unary call over a Unix socket to a one-thread server in another process.

The handler is generic and the messages are JSON, so that no generated code is needed; a protobuf message of
this size costs about the same.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc

from benchmarks.workload import detect

ASYNCHRONOUS = False
SERVICE, METHOD = "benchmarks.Vision", "Detect"


def describe() -> dict[str, Any]:
    return {"version": grpc.__version__, "messages": "JSON"}


def to_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def handle(request: dict[str, Any], _context: grpc.ServicerContext) -> dict[str, Any]:
    return detect(*request["arguments"], **request["keywords"])


def answer(address: str, control: Connection) -> None:
    """The child: a server that stops when the parent hangs up."""
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    method = grpc.unary_unary_rpc_method_handler(handle, request_deserializer=json.loads, response_serializer=to_bytes)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))
    server.add_insecure_port(address)
    server.start()
    control.send("ready")
    try:
        control.recv()
    except EOFError:
        pass  # the parent hung up, which is how it says that it is done
    server.stop(grace=None).wait()


@contextmanager
def opened() -> Iterator[Callable[..., Any]]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/socket"
        here, there = context.Pipe()
        process = context.Process(target=answer, args=(address, there), daemon=True)
        process.start()
        there.close()
        here.recv()
        with grpc.insecure_channel(address) as channel:
            unary = channel.unary_unary(
                f"/{SERVICE}/{METHOD}", request_serializer=to_bytes, response_deserializer=json.loads
            )

            def call(*arguments: Any, **keywords: Any) -> Any:
                return unary({"arguments": arguments, "keywords": keywords})

            yield call
        here.close()
        process.join()
