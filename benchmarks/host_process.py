# SPDX-License-Identifier: Apache-2.0
"""What runs in a contender's host process: opens one peer, then serves batches of calls on request.

Usage: ``python -m benchmarks.host_process PEER PLACEMENT``: a module of ``benchmarks.peers``, a name of
``placement``.

The protocol is one JSON object a line, a request on standard input and a reply on standard output; after the
reply to ``run``, ``count`` samples follow as 64-bit integers in the machine's byte order. What always holds:
the protocol has its own descriptors, so that whatever a peer prints goes to standard error; the process
sleeps in ``readline`` between batches; it ends when its input ends.

A peer module has ``ASYNCHRONOUS`` (whether the call is awaited), ``describe()`` (versions and settings worth
a line in the results) and ``opened()``: a context manager (asynchronous where the call is) that starts the
far side and yields the call. What it needs installed is written in ``catalogue.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import traceback
from array import array
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import IO, Any

from benchmarks.batch import run_batch, run_batch_async
from benchmarks.placement import place, place_caller

Runner = Callable[[int], "array[int]"]


def claim_protocol_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Moves the protocol to descriptors of its own that no child inherits, and points 0 and 1 somewhere
    harmless.
    """
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


@contextlib.contextmanager
def opened_runner(peer: ModuleType) -> Iterator[Runner]:
    """Opens the peer and yields what runs a batch of it, whether its call blocks or is awaited."""
    if not peer.ASYNCHRONOUS:
        with peer.opened() as call:
            yield lambda count: run_batch(call, count)
        return
    with asyncio.Runner() as loop:
        stack = contextlib.AsyncExitStack()

        async def enter() -> Callable[..., Any]:
            call: Callable[..., Any] = await stack.enter_async_context(peer.opened())
            return call

        call = loop.run(enter())
        try:
            yield lambda count: loop.run(run_batch_async(call, count))
        finally:
            loop.run(stack.aclose())


def send(replies: IO[bytes], message: dict[str, Any], payload: bytes = b"") -> None:
    """Writes one reply line and what follows it, however many writes the pipe takes."""
    remaining = memoryview(json.dumps(message).encode() + b"\n" + payload)
    while remaining:
        remaining = remaining[replies.write(remaining) :]


def serve(peer: ModuleType, placement: str, requests: IO[bytes], replies: IO[bytes]) -> None:
    """Opens the peer, says so, and answers requests until the input ends or ``close`` is asked for."""
    place_caller(placement)
    with opened_runner(peer) as run:
        place(placement)
        send(replies, {"ready": True, "description": peer.describe()})
        for line in requests:
            request = json.loads(line)
            if request["request"] == "close":
                break
            try:
                samples = run(request["count"])
            except Exception as error:
                send(
                    replies,
                    {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()},
                )
                continue
            send(replies, {"count": len(samples)}, samples.tobytes())
    send(replies, {"closed": True})


def main() -> int:
    """Serves the peer named on the command line; an error while opening or closing it is a reply too."""
    name, placement = sys.argv[1], sys.argv[2]
    requests, replies = claim_protocol_streams()
    try:
        peer = importlib.import_module(f"benchmarks.peers.{name}")
        serve(peer, placement, requests, replies)
    except Exception as error:
        send(replies, {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
