# SPDX-License-Identifier: Apache-2.0
"""Objects of unknown type cross by the protocols that they offer; what cannot says why, and what to pass."""

from __future__ import annotations

import sys
from typing import Any

import numpy
import pyarrow
import pytest

from atoll_worker import interfaces
from atoll_worker.arrays import array_reducer_of
from atoll_worker.values import Decoder

from .carriers import HOST, WORKER, Recording, passed, refusal
from .standard_values import same


class Wrapper:
    """Has something in it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Interface(Wrapper):
    @property
    def __array_interface__(self) -> Any:
        return self.inner.__array_interface__


class Derived(Interface):
    """Of a class that has the protocol from its base."""


class Exchange(Wrapper):
    device = (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        return self.inner.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.device


class Stream(Wrapper):
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.inner.__arrow_c_stream__(requested_schema)


class Column(Wrapper):
    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self.inner.__arrow_c_array__(requested_schema)


ARRAYS = [
    numpy.arange(6.0).reshape(2, 3), numpy.arange(100_000, dtype="i2"), numpy.arange(24).reshape(4, 6)[::2, ::-3],
    numpy.zeros((0, 3)), numpy.array(5), numpy.array([True, False]), numpy.ones(3, "c16"),
]  # fmt: skip


@pytest.mark.parametrize("decoder", [HOST, WORKER])
@pytest.mark.parametrize("kind", [Interface, Derived, Exchange])
def test_arrays(kind: Any, decoder: Decoder) -> None:
    """They arrive as arrays of numpy."""
    for array in ARRAYS:
        arrived = passed({"a": kind(array)}, decoder)["a"]
        assert type(arrived) is numpy.ndarray
        assert same(arrived, array)
    text = numpy.array(["2024-02-29", "NaT"], "M8[D]")
    assert same(passed(Derived(text), decoder), text)


def test_memory_that_is_shared_already() -> None:
    """What the carrier finds again is not copied."""
    array = numpy.arange(1000)
    address = array.__array_interface__["data"][0]
    for kind in (Interface, Exchange):
        carrier = Recording((address, array.nbytes))
        reducer = array_reducer_of(kind)
        assert reducer is not None
        reducer(kind(array), carrier)
        assert carrier.found == [(address, array.nbytes)]
        assert carrier.stored == []


def test_tables() -> None:
    """They arrive as what pyarrow has."""
    table = pyarrow.table({"a": [1, None], "b": ["x", "y"]})
    for value, expected in (
        (Stream(table), table),
        (Stream(pyarrow.chunked_array([[1], [2]])), pyarrow.chunked_array([[1], [2]])),
        (Column(table.to_batches()[0]), table.to_batches()[0]),
        (Column(pyarrow.array([1, 2])), pyarrow.array([1, 2])),
    ):
        arrived = passed([value])[0]
        assert type(arrived) is type(expected)
        assert arrived.equals(expected)


@pytest.mark.parametrize(
    ("device", "name"), [((2, 1), "CUDA 1"), ((8, 0), "Metal 0"), ((99, 3), "device of DLPack's kind 99 3")]
)
def test_devices(device: tuple[int, int], name: str) -> None:
    """What lies elsewhere is named, with its device."""
    value = Exchange(numpy.zeros(3))
    value.device = device
    assert f"(in the memory of {name}; copy it to the memory of the processor first)" in refusal([value])


class Moody:
    """Offers everything, and does nothing."""

    @property
    def __array_interface__(self) -> Any:
        raise RuntimeError("not today")

    def __dlpack_device__(self) -> Any:
        raise RuntimeError("not today")


class Unlucky(Wrapper):
    def __dlpack__(self) -> None:
        """Never called."""

    def __dlpack_device__(self) -> Any:
        raise RuntimeError("not today")


def test_protocols_that_raise() -> None:
    """The message says what was raised."""
    assert "numpy cannot read it: RuntimeError: not today" in refusal(Moody())
    assert "asked for its device, it raised RuntimeError: not today" in refusal(Unlucky(1))
    assert "numpy cannot read it: AttributeError" in refusal(Exchange(1))
    assert "pyarrow cannot read it: AttributeError" in refusal(Stream(1))
    objects = numpy.array([1, "a"], dtype=object)
    assert "numpy makes of it ndarray of dtype object" in refusal(Interface(objects))


class Converting:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return numpy.zeros(3)


class LikeArray(numpy.ndarray):  # type: ignore[type-arg]
    """More than an array."""


def test_what_is_left_alone() -> None:
    """What only converts, and subclasses of what crosses by name: with what to pass."""
    assert refusal(Converting()).endswith("Converting cannot be passed by value; return numpy.asarray(x)")
    assert refusal(numpy.zeros(3).view(LikeArray)).endswith(
        "LikeArray cannot be passed by value; return numpy.asarray(x)"
    )
    assert interfaces.reducer_of(LikeArray) is None
    assert refusal(numpy.ma.masked_array([1], [True])).endswith("return .filled() and .mask")


def test_libraries_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain arrays in a row need none; the rest says which."""
    expected = numpy.arange(6.0).reshape(2, 3)
    plain, strided = Interface(expected), Interface(expected[:, ::2])
    exchange, stream = Exchange(numpy.zeros(3)), Stream(pyarrow.table({"a": [1]}))
    reducer = array_reducer_of(Interface)
    assert reducer is not None
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "numpy", None)
        patch.setitem(sys.modules, "pyarrow", None)
        carrier = Recording()
        carrier.inline = 0
        restore, arguments = reducer(plain, carrier)
        assert "can be read without numpy" in refusal(strided)
        assert "it would cross as an array of numpy, which is not here" in refusal(exchange)
        assert "it would cross as an Arrow table, but pyarrow is not here" in refusal(stream)
    assert same(restore(*arguments), expected)
    assert len(carrier.stored) == 1
