# SPDX-License-Identifier: Apache-2.0
"""Tables, frames and images through real workers: copied once on the way, not at all when passed on, one's own where
they arrive, and given back when nobody has them any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas
import polars
import pyarrow
import pytest
from PIL import Image

import atoll
from segment_counts import until_given_back

Write = Callable[[str, str], Path]

SERVICE = """\
from atoll_worker import Service, expose

class Tables(Service):
    kept = None

    @expose
    def echo(self, value):
        return value

    @expose
    def keep(self, value):
        self.kept = value

    @expose
    def kept_sum(self):
        return int(sum(self.kept["a"].to_pylist()))

    @expose
    def changed(self, frame):
        frame.loc[0, "a"] = -1
        frame["c"] = frame["a"] * 2
        return frame

    @expose
    def pieces(self, table, size):
        for start in range(0, table.num_rows, size):
            yield table.slice(start, size)
"""

ROWS = 200_000
TABLE = pyarrow.table({"a": numpy.arange(ROWS), "text": [f"text {index}" for index in range(ROWS)]})


@pytest.fixture
def services(write: Write) -> Iterator[tuple[Any, Any]]:
    file = write("tables.py", SERVICE)
    with atoll.Service(file) as one, atoll.Service(file) as other:
        yield one, other


def values() -> dict[str, Any]:
    """Some of each, large enough to go through shared memory."""
    return {
        "table": TABLE,
        "batch": TABLE.to_batches()[0],
        "chunks": TABLE["text"],
        "frame": TABLE.to_pandas(),
        "block": pandas.DataFrame(numpy.random.default_rng(1).random((10_000, 20))),
        "series": pandas.Series([f"text {index}" for index in range(50_000)], name="s"),
        "polars": polars.from_arrow(TABLE),
        "image": Image.effect_mandelbrot((500, 400), (-2, -1, 1, 1), 50).convert("RGBA"),
        "view": memoryview(bytearray(range(256)) * 1000),
    }


def equal(one: Any, other: Any) -> bool:
    """Equal, by whichever way the two have."""
    return bool(one.equals(other) if hasattr(one, "equals") else one == other)


def test_there_and_back(services: tuple[Any, Any]) -> None:
    """All kinds, alone and nested, arrive equal; when they are gone, nothing is lent or borrowed."""
    one, _ = services
    for name, value in values().items():
        assert equal(one.echo(value), value), name
        nested = one.echo({"in": [value, (value,)]})
        assert nested["in"][0] is nested["in"][1][0]
        assert equal(nested["in"][0], value)
        del nested
    until_given_back()  # the worker lets go of what it was passed after it has answered


NUMBERS = pyarrow.table({"a": numpy.arange(ROWS), "b": numpy.arange(ROWS) * 0.5})


@pytest.mark.parametrize(
    "value",
    [NUMBERS, NUMBERS.to_batches()[0], NUMBERS["b"], NUMBERS.to_pandas(), values()["block"]],
    ids=["table", "batch", "chunks", "frame", "block"],
)
def test_passing_on_copies_nothing(value: Any, services: tuple[Any, Any]) -> None:
    """What one worker gave goes to another as it is, if it is made of numbers: text has offsets, which a worker could
    change once they were checked, so that the host makes a copy of it."""
    one, other = services
    received = one.echo(value)
    before = atoll.memory().copies
    other.keep(received)
    assert atoll.memory().copies == before
    assert equal(received, value)


def test_a_worker_keeps_what_the_host_let_go(services: tuple[Any, Any]) -> None:
    """The memory lives as long as the table, on whichever side; and is not overwritten by what is passed next."""
    one, _ = services
    one.keep(pyarrow.table({"a": numpy.arange(ROWS)}))
    for fill in range(3):
        assert one.echo(pyarrow.table({"a": numpy.full(ROWS, fill)}))["a"][5].as_py() == fill
    assert one.kept_sum() == ROWS * (ROWS - 1) // 2


def test_frames_are_ones_own(services: tuple[Any, Any]) -> None:
    """A worker changes its frame, the host its result; nobody else sees it."""
    one, _ = services
    frame = pandas.DataFrame({"a": numpy.arange(ROWS), "b": 1.5})
    result = one.changed(frame)
    assert frame.loc[0, "a"] == 0
    assert (result.loc[0, "a"], result.loc[0, "c"], result.loc[2, "c"]) == (-1, -2, 4)
    result.loc[5, "a"] = 99
    result["d"] = 0
    assert one.changed(frame).loc[5, "a"] == 5


def test_pieces_of_a_table(services: tuple[Any, Any]) -> None:
    """A generator of slices: each arrives as no more than it is."""
    one, _ = services
    pieces = list(one.pieces(TABLE, 30_000))
    assert pyarrow.concat_tables(pieces).equals(TABLE)
    del pieces
    until_given_back()


def test_what_cannot_cross(services: tuple[Any, Any]) -> None:
    """The error names the argument and the column; the next call works."""
    one, _ = services
    with pytest.raises(TypeError, match=r"\['bad'\]\.iloc\[1\]: object cannot be passed by value"):
        one.echo(pandas.DataFrame({"ok": [1, 2], "bad": [1, object()]}))
    with pytest.raises(TypeError, match=r"x\.collect\(\) can be passed"):
        one.echo(polars.LazyFrame())
    assert one.echo(1) == 1
