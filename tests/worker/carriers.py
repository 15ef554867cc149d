# SPDX-License-Identifier: Apache-2.0
"""For the tests of values that are mostly bytes: passing them without a process, and a carrier that finds memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from atoll_worker.arrays import Carrier
from atoll_worker.errors import EncodeError
from atoll_worker.values import Decoder, Encoder, explain_unencodable

HOST = Decoder(checked=True, side="the host", read_only=True)
WORKER = Decoder(checked=False, side="the worker")


def buffers_of(encoder: Encoder) -> list[bytearray]:
    """The buffers of what was encoded last, as they come out of a socket."""
    return [bytearray(buffer) for buffer in encoder.take_buffers()]


def passed(value: Any, decoder: Decoder = HOST) -> Any:
    """The value as it arrives."""
    encoder = Encoder()
    payload = encoder.encode(value)
    return decoder.decode(payload, buffers_of(encoder))


def refusal(value: Any) -> str:
    """The message that says why a result cannot cross."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it is explained
        Encoder().encode(value)
    error = explain_unencodable(caught.value, [("result", value)])
    assert isinstance(error, EncodeError)
    return str(error)


class Recording(Carrier):
    """Takes note of what is stored, gives writable memory for it, and finds what lies in memory it was told of."""

    inline = 64

    def __init__(self, *shared: tuple[int, int]) -> None:
        self.notes = {}
        self.shared = shared
        self.found: list[tuple[int, int]] = []
        self.stored: list[bytearray] = []

    def find(self, address: int, nbytes: int) -> Any:
        if not any(start <= address and address + nbytes <= start + size for start, size in self.shared):
            return None
        self.found.append((address, nbytes))
        return memoryview((ctypes.c_ubyte * nbytes).from_address(address)).cast("B")

    def store(
        self,
        nbytes: int,
        fill: Callable[[memoryview], object],
        address: int = 0,
        raw: Callable[[], Any] | None = None,
    ) -> Any:
        memory = bytearray(nbytes)
        fill(memoryview(memory))
        if raw is not None:
            assert memoryview(raw()).cast("B") == memory
        self.stored.append(memory)
        return memory

    def again(self) -> bool:
        return False
