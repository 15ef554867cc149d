# SPDX-License-Identifier: Apache-2.0
"""Other ways to get a large array into another process and one back: what people use, and what they write by hand.

Each peer has one process beside this one, in which the functions of ``array_service`` run: ``argument`` calls one of
them with an array, ``result`` calls ``give``. ``InSharedMemory`` is the best that can be made by hand: one block for
good, both sides have it mapped, no description of the array crosses, one copy.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

import numpy

from benchmarks import array_service


class ArrayPeer(Protocol):
    """A way to get arrays across."""

    def argument(self, function: Callable[..., Any], array: Any) -> Any:
        """What the function returns over there."""

    def result(self, nbytes: int, mark: int) -> Any:
        """The array that ``give`` returns over there."""


class InExecutor:
    """``ProcessPoolExecutor``, of the standard library or of loky."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def argument(self, function: Callable[..., Any], array: Any) -> Any:
        return self._executor.submit(function, array).result()

    def result(self, nbytes: int, mark: int) -> Any:
        return self._executor.submit(array_service.give, nbytes, mark).result()


def _send(connection: Connection, value: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    connection.send((payload, len(buffers)))
    for buffer in buffers:
        connection.send_bytes(buffer)


def _receive(connection: Connection) -> Any:
    payload, count = connection.recv()
    buffers = [connection.recv_bytes() for _ in range(count)]
    return pickle.loads(payload, buffers=buffers)


def answer_over_pipe(connection: Connection) -> None:
    """The child of ``OverPipe``: until the parent hangs up."""
    while True:
        try:
            function, arguments = _receive(connection)
        except EOFError:
            return
        _send(connection, function(*arguments))


class OverPipe:
    """``pickle`` protocol 5 over ``multiprocessing.Pipe``, with the array's bytes out of band."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def argument(self, function: Callable[..., Any], array: Any) -> Any:
        _send(self._connection, (function, (array,)))
        return _receive(self._connection)

    def result(self, nbytes: int, mark: int) -> Any:
        _send(self._connection, (array_service.give, (nbytes, mark)))
        return _receive(self._connection)


def answer_in_shared_memory(connection: Connection, name: str, nbytes: int) -> None:
    """The child of ``InSharedMemory``: until the parent hangs up."""
    block = SharedMemory(name)
    array = numpy.ndarray(nbytes, numpy.uint8, block.buf)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            break
        if function is array_service.give:
            numpy.copyto(array, function(*arguments))
            connection.send(None)
        else:
            connection.send(function(array))
    del array
    block.close()


class InSharedMemory:
    """One block of ``multiprocessing.shared_memory``, made once, and a pipe to say when."""

    def __init__(self, connection: Connection, block: SharedMemory, nbytes: int) -> None:
        self._connection = connection
        self._array = numpy.ndarray(nbytes, numpy.uint8, block.buf)

    def argument(self, function: Callable[..., Any], array: Any) -> Any:
        numpy.copyto(self._array, array)
        self._connection.send((function, None))
        return self._connection.recv()

    def result(self, nbytes: int, mark: int) -> Any:
        self._connection.send((array_service.give, (nbytes, mark)))
        self._connection.recv()
        return self._array

    def close(self) -> None:
        """The block can only be closed once nothing uses it."""
        del self._array


@contextmanager
def _child(answer: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=answer, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join()


@contextmanager
def opened_process_pool(nbytes: int) -> Iterator[ArrayPeer]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1) as executor:
        yield InExecutor(executor)


@contextmanager
def opened_loky(nbytes: int) -> Iterator[ArrayPeer]:
    import loky

    with loky.ProcessPoolExecutor(max_workers=1) as executor:
        yield InExecutor(executor)


@contextmanager
def opened_pipe(nbytes: int) -> Iterator[ArrayPeer]:
    with _child(answer_over_pipe) as connection:
        yield OverPipe(connection)


@contextmanager
def opened_shared_memory(nbytes: int) -> Iterator[ArrayPeer]:
    block = SharedMemory(create=True, size=nbytes)
    try:
        with _child(answer_in_shared_memory, block.name, nbytes) as connection:
            peer = InSharedMemory(connection, block, nbytes)
            try:
                yield peer
            finally:
                peer.close()
    finally:
        block.close()
        block.unlink()


# By name. The first one is as quick as atoll should be; the others copy through a pipe, and take long.
ARRAY_PEERS = {
    "shared_memory": opened_shared_memory,
    "pipe": opened_pipe,
    "process_pool": opened_process_pool,
    "loky": opened_loky,
}
QUICK_PEERS = ("shared_memory",)


@contextmanager
def opened_array_peers(nbytes: int, left_out: dict[str, str]) -> Iterator[dict[str, ArrayPeer]]:
    """All that can be opened and give a right answer; why one cannot is put into ``left_out``."""
    from contextlib import ExitStack

    opened: dict[str, ArrayPeer] = {}
    with ExitStack() as stack:
        for name, open_peer in ARRAY_PEERS.items():
            try:
                opened[name] = stack.enter_context(open_peer(nbytes))
                opened[name].argument(len, numpy.zeros(nbytes, numpy.uint8))
            except Exception as error:
                opened.pop(name, None)
                left_out[name] = f"{type(error).__name__}: {error}"
        yield opened
