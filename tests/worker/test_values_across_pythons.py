# SPDX-License-Identifier: Apache-2.0
"""The bytes mean the same on every Python from 3.9 on, and with numpy 1 and 2, whoever wrote them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest

import atoll_worker
from atoll_worker import register, wire
from atoll_worker.values import Decoder, Encoder
from interpreters import INTERPRETERS

from .array_values import ARRAYS, SCALARS
from .echo_process import Colour, Level, Part, Point, Rights
from .standard_values import STANDARD, same

SOURCE = Path(atoll_worker.__file__).parents[1]
ECHO = Path(__file__).with_name("echo_process.py")
GROUPS = {"STANDARD": STANDARD, "ARRAYS": ARRAYS, "SCALARS": SCALARS}


class Far:
    """The process at the other end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.reader = wire.FrameReader()
        self.encoder = Encoder()
        self.decoder = Decoder(checked=True, side="the host")

    def ask(self, what: str, value: Any) -> Any:
        """Send one request, and return the decoded answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        payload = self.encoder.encode((what, value))
        pieces = wire.pack(wire.CALL, wire.PICKLE, 1, payload, self.encoder.take_buffers())
        self.process.stdin.write(b"".join(pieces))
        self.process.stdin.flush()
        while True:
            data = self.process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
            assert data, "the process ended"
            for frame in self.reader.receive_data(data):
                answer = self.decoder.decode(frame.payload, frame.buffers)
                if frame.kind == wire.ERROR:
                    raise RuntimeError(answer)
                return answer


@contextmanager
def far(python: str) -> Iterator[Far]:
    """A process that echoes, under that interpreter."""
    command = [python, "-I", "-B", str(ECHO), str(SOURCE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Far(process)


def differences(group: str, there: Far) -> list[str]:
    """Where a group of values is not the same on both sides: echoed, made there, or compared there."""
    values = GROUPS[group]
    echoed = [there.ask("echo", value) for value in values]
    own = there.ask("own", group)
    assert len(own) == len(values)
    compared_there = there.ask("same", (group, values))
    return [
        f"{group}[{index}] {value!r:.80}: echoed {same(echoed[index], value)}, made there {same(own[index], value)}"
        for index, value in enumerate(values)
        if not same(echoed[index], value) or not same(own[index], value) or index in compared_there
    ]


@pytest.mark.parametrize("version", INTERPRETERS)
def test_values_of_the_standard_library(version: str) -> None:
    """All types, both directions: what this side makes is the same over there, and the reverse."""
    with far(INTERPRETERS[version]) as there:
        assert there.ask("version", None)[0][:2] == tuple(map(int, version.split(".")))
        assert differences("STANDARD", there) == []
        assert same(there.ask("echo", STANDARD), STANDARD)


@pytest.mark.parametrize("version", INTERPRETERS)
def test_registered_classes(version: str) -> None:
    """Classes of the user's own, which each side has in a module of another name."""
    for cls in (Colour, Rights, Level, Part, Point):
        register(cls)
    values = [
        Colour.RED, Level.HIGH, Rights.READ, Rights.READ | Rights.RUN, Rights(0), Part("a", [Part("b")]),
        Point(1, Point(2, Colour.BLUE)), {Colour.RED: Part("key")},
    ]  # fmt: skip
    with far(INTERPRETERS[version]) as there:
        for value in values:
            arrived = there.ask("echo", value)
            assert type(arrived) is type(value)
            assert arrived == value


@pytest.mark.parametrize("version", INTERPRETERS)
def test_arrays_where_numpy_is_not(version: str) -> None:
    """Without numpy over there, an array passes through; one of objects is an error that names the interpreter."""
    with far(INTERPRETERS[version]) as there:
        for array in ARRAYS:
            if array.dtype != object:
                assert same(there.ask("echo", array), array)
        if not there.ask("has", "numpy"):
            with pytest.raises(RuntimeError, match=r"DecodeError: .*numpy cannot be imported by .*python"):
                there.ask("echo", numpy.array([None]))
        assert there.ask("echo", 1) == 1


def test_an_unknown_class_over_there() -> None:
    """What only this side registered is named with its path by the other."""
    register(Link := type("Link", (Part,), {}))
    with (
        far(sys.executable) as there,
        pytest.raises(RuntimeError, match="'Link', which is not registered in the worker"),
    ):
        there.ask("echo", {"a": [Link("x")]})


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="only continuous integration promises interpreters")
def test_enough_interpreters_ran() -> None:
    """On CI at least three different Pythons were at the other end."""
    assert len(INTERPRETERS) >= 3, INTERPRETERS


# -- numpy 1 and 2 -----------------------------------------------------------------------------------------------------

NUMPYS = [("3.9", "numpy==1.24.4"), ("3.12", "numpy==1.26.4"), ("3.10", "numpy==2.2.6"), ("3.13", "numpy>=2.3")]


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """The interpreters of environments built so far."""
    return {}


@pytest.mark.network
@pytest.mark.parametrize(("version", "requirement"), NUMPYS)
def test_numpy_of_another_generation(
    version: str,
    requirement: str,
    environments: dict[tuple[str, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Arrays and scalars, both directions, between this side's numpy and another."""
    if version not in INTERPRETERS:
        pytest.skip(f"no Python {version} on this machine")
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        pytest.skip("no uv on this machine")
    key = version, requirement
    if key not in environments:
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run([uv, "venv", "-q", "--python", INTERPRETERS[version], folder / "venv"], check=True)
        python = str(folder / "venv/bin/python")
        subprocess.run([uv, "pip", "install", "-q", "--python", python, requirement], check=True)
        environments[key] = python
    with far(environments[key]) as there:
        for group in GROUPS:
            assert differences(group, there) == []
        assert re.split("[=>]+", requirement)[1].split(".")[0] == there.ask("version", None)[1].split(".")[0]
        assert same(there.ask("echo", ARRAYS), ARRAYS)
        for array in ARRAYS:
            # Read-only are only those whose bytes are items more than once, on both sides.
            assert there.ask("echo", array).flags.writeable == array.flags.writeable
