# SPDX-License-Identifier: Apache-2.0
"""Frames, tables and images between this side's libraries and those of other years, and where some are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import polars
import pytest
from PIL import Image

from interpreters import INTERPRETERS

from .frame_values import FRAME, VALUES, same
from .test_tables import ARRAYS, LARGE, TABLE
from .test_tables import FRAME as POLARS
from .test_values_across_pythons import Far, far

pytestmark = pytest.mark.network

# What is older, without Arrow; older Arrow; and the newest, without Arrow.
PLACES = {
    "pandas 1.5": ("3.9", ["pandas==1.5.3", "numpy==1.24.4"]),
    "pyarrow 12": ("3.10", ["pyarrow==12.0.1", "numpy==1.26.4", "pandas==2.1.4", "polars==0.20.31", "pillow==9.5.0"]),
    "newest": ("3.13", ["pandas>=3", "polars>=1.17", "pillow>=11"]),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The interpreters of environments built so far."""
    return {}


@pytest.fixture(params=PLACES)
def there(
    request: pytest.FixtureRequest, places: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Far]:
    """A process in such an environment."""
    name = request.param
    version, requirements = PLACES[name]
    if version not in INTERPRETERS:
        pytest.skip(f"no Python {version} on this machine")
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        pytest.skip("no uv on this machine")
    if name not in places:
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run([uv, "venv", "-q", "--python", INTERPRETERS[version], folder / "venv"], check=True)
        python = str(folder / "venv/bin/python")
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *requirements], check=True)
        places[name] = python
    with far(places[name]) as process:
        yield process


def dtype_of(values: Any) -> str:
    """A dtype by name, where those count as one that one of two versions has in the place of the other's."""
    name = str(values.dtype)
    for ours, theirs in (("str", "object"), ("datetime64[us", "datetime64[ns"), ("timedelta64[us", "timedelta64[ns")):
        name = theirs + name[len(ours) :] if name.startswith(ours) and name != "string" else name
    return name


def description(value: Any) -> Any:
    """All that must be the same, whatever the two versions are."""
    if isinstance(value, pandas.DataFrame):
        columns = [description(value.iloc[:, number]) for number in range(value.shape[1])]
        return "frame", columns, description(value.columns), description(value.index), value.attrs
    if isinstance(value, pandas.Series):
        items = repr(value.astype(object).where(value.notna(), None).tolist())
        return "series", dtype_of(value), items, repr(value.name), description(value.index), value.attrs
    if isinstance(value, pandas.MultiIndex):
        return "pairs", repr(value.tolist()), list(value.names)
    # What an index without labels is differs from version to version.
    kind = type(value).__name__ if len(value) else ""
    zoned = getattr(value, "tz", None) is not None
    return "index", kind, repr(value.astype(object).tolist()), value.name, zoned


def test_pandas(there: Far) -> None:
    """Both ways: what is made here and echoed there, and what is made there."""
    for value in VALUES:
        assert description(there.ask("echo", value)) == description(value)
    made_there = there.ask("own", "VALUES")
    assert len(made_there) == len(VALUES)
    for theirs, ours in zip(made_there, VALUES, strict=True):
        assert description(theirs) == description(ours)
        assert same(there.ask("echo", theirs), theirs)


def test_text_of_pandas(there: Far) -> None:
    """Strings of this version, which the other may not have: they come back as text."""
    series = pandas.Series(["a", None, "ü" * 1000] * 100, dtype="str")
    for one in (series, series.astype("string"), pandas.DataFrame({"a": series, "b": 1})["a"]):
        assert description(there.ask("echo", one)) == description(one)
    objects = pandas.Series([*(f"text {index}" for index in range(2000)), None], dtype=object)
    assert same(there.ask("echo", objects), objects)
    frame = pandas.DataFrame({"a": [1], "b": ["x"]})
    assert same(there.ask("echo", frame).columns.to_frame(), frame.columns.to_frame())


def test_arrow(there: Far) -> None:
    """Tables and arrays, both ways; where there is no pyarrow, an error that says so."""
    if not there.ask("has", "pyarrow"):
        with pytest.raises(RuntimeError, match=r"an Arrow table came, but pyarrow cannot be imported by .*add pyarrow"):
            there.ask("echo", TABLE)
        with pytest.raises(RuntimeError, match="add pyarrow"):
            there.ask("echo", pandas.Series(pandas.array([1], dtype="int64[pyarrow]")))
        return
    for table in (TABLE, LARGE, TABLE.slice(1, 1)):
        assert there.ask("echo", table).equals(table, check_metadata=True)
    for array in ARRAYS:
        arrived = there.ask("echo", array)
        assert (arrived.type, str(arrived.to_pylist())) == (array.type, str(array.to_pylist()))
    frame = pandas.DataFrame({"a": pandas.array([1, None], dtype="int64[pyarrow]")})
    assert same(there.ask("echo", frame), frame)


def test_polars(there: Far) -> None:
    """Frames, with pyarrow here and without it there, or with an older one."""
    if not there.ask("has", "polars"):
        with pytest.raises(RuntimeError, match="polars cannot be imported"):
            there.ask("echo", POLARS)
        return
    large = polars.from_arrow(LARGE)
    assert there.ask("echo", large).equals(large)
    # Older ones have structs that are missing in part only.
    structs = polars.DataFrame({"struct": POLARS["struct"].drop_nulls()})
    assert there.ask("echo", structs).equals(structs)
    arrived = there.ask("echo", POLARS.drop("struct"))
    for series in POLARS.drop("struct"):
        assert arrived[series.name].to_list() == series.to_list()


def test_images(there: Far) -> None:
    """Images, large and small."""
    if not there.ask("has", "PIL"):
        with pytest.raises(RuntimeError, match="add PIL"):
            there.ask("echo", Image.new("L", (1, 1)))
        return
    for mode in ("L", "P", "RGB", "RGBA", "1", "F", "I;16"):
        image = Image.effect_mandelbrot((200, 100), (-2, -1, 1, 1), 50).convert(mode)
        arrived = there.ask("echo", image)
        assert (arrived.mode, arrived.size, arrived.tobytes()) == (mode, image.size, image.tobytes())
        assert arrived.getpalette() == image.getpalette()


def test_rows_are_what_they_were(there: Far) -> None:
    """A frame that was sliced here is whole there."""
    assert description(there.ask("echo", FRAME.iloc[::-2])) == description(FRAME.iloc[::-2])
