# SPDX-License-Identifier: Apache-2.0
"""Arrays, ``bytes`` and text of every size in every order: each arrives in its own place, aliases as one, on every
Python that workers may run."""

from __future__ import annotations

import array as array_module
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import atoll
from interpreters import INTERPRETERS
from segment_counts import until_given_back

MB = 1 << 20
KB = 1 << 10
Random = Callable[[int], np.ndarray]

ECHO = """\
    from atoll_worker import expose
    from atoll_worker.segments import store

    @expose
    def echo(x):
        return x

    @expose
    def identical(x, one, other):
        return x[one] is x[other]

    @expose
    def scribble(x):
        memoryview(x.data if hasattr(x, "data") else x).cast("B")[:] = bytes(len(x.data))

    @expose
    def borrowed():
        return store.figures()["borrowed"]
"""

# What workers run: this Python, with numpy, and the oldest and the newest one, without.
PYTHONS = {"own": None, **{version: INTERPRETERS[version] for version in ("3.9", "3.13") if version in INTERPRETERS}}


@pytest.fixture(scope="module")
def far_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import textwrap

    file = tmp_path_factory.mktemp("echo") / "echo_service.py"
    file.write_text(textwrap.dedent(ECHO))
    return file


@pytest.fixture(params=list(PYTHONS))
def far(request: pytest.FixtureRequest, far_file: Path) -> Iterator[Any]:
    """A service in each of these Pythons."""
    environment = PYTHONS[request.param]
    with atoll.Service(far_file, environment=environment, timeout=60) as service:
        yield service


@cache
def bytes_of(size: int, seed: int) -> bytes:
    return np.random.default_rng([size, seed]).integers(0, 255, size, "u1").tobytes()


# Around every threshold: of what goes inside, of the pickler's frames, and of what has a segment of its own.
LENGTHS = [
    0,
    1,
    255,
    256,
    4000,
    32_767,
    32_768,
    60_000,
    65_529,
    65_535,
    65_536,
    65_537,
    100_000,
    262_143,
    262_144,
    300_000,
]
lengths = st.sampled_from(LENGTHS)
seeds = st.integers(0, 2)
kinds = {
    "array": lambda size, seed: np.frombuffer(bytes_of(size, seed), "u1"),
    "shared": lambda size, seed: atoll.asarray(np.frombuffer(bytes_of(size, seed), "u1")),
    "bytes": bytes_of,
    "bytearray": lambda size, seed: bytearray(bytes_of(size, seed)),
    "text": lambda size, seed: bytes_of(size, seed).decode("latin-1"),
    "memoryview": lambda size, seed: memoryview(bytes_of(size, seed)),
    "typed": lambda size, seed: array_module.array("B", bytes_of(size, seed)),
}  # fmt: skip
leaves = st.builds(lambda kind, size, seed: kinds[kind](size, seed), st.sampled_from(list(kinds)), lengths, seeds)
structures = st.recursive(
    leaves | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=6) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=14,
)


def plain(value: Any) -> Any:
    """What it is, as values that can be compared."""
    kind = type(value)
    if kind in (list, tuple):
        return [kind.__name__, *map(plain, value)]
    if kind is dict:
        return [(name, plain(item)) for name, item in value.items()]
    if kind is np.ndarray:
        return "array", value.dtype.str, value.shape, value.tobytes()
    if kind is memoryview:
        return "memoryview", value.tobytes()
    if kind is array_module.array:
        return "typed", value.typecode, value.tobytes()
    return kind.__name__, value


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=structures)
@example([b"x" * 65_536, np.zeros(40_000, "u1"), b"y" * 65_536])
@example([np.zeros(40_000, "u1"), b"x" * 65_536, "z" * 70_000, bytearray(80_000), np.ones(40_000, "u1")])
@example(["é" * 40_000, bytearray(65_536), b"B\0\0\1\0" * 20_000, b"\x96" + b"\0" * 65_535])
def test_whatever_structure(far: Any, value: Any) -> None:
    assert plain(far.echo(value)) == plain(value)
    assert plain(far.echo([value, value])) == plain([value, value])


def test_whatever_order(far: Any) -> None:
    """Every pair of kinds, at sizes where each goes its own way."""
    for size in (300, 66_000, 270_000):
        everything = [make(length, 1) for make in kinds.values() for length in (size, 66_000)]
        for first in range(0, len(everything), 2):
            value = everything[first:] + everything[:first]
            assert plain(far.echo(value)) == plain(value)
            assert plain(far.echo({str(at): one for at, one in enumerate(reversed(value))}))


def test_nothing_of_it_stays(far: Any) -> None:
    value = [make(100_000, 1) for make in kinds.values()]
    for _ in range(3):
        came = far.echo(value)
        assert plain(came) == plain(value)
        del came
    del value
    until_given_back()
    assert far.borrowed() == 0


# -- aliases -------------------------------------------------------------------------------------------------------


def copied_by(call: Callable[[], Any]) -> tuple[int, Any]:
    before = atoll.memory().copied_bytes
    result = call()
    return atoll.memory().copied_bytes - before, result


@pytest.mark.parametrize("make", [name for name in kinds if name not in ("text", "shared")])
def test_the_same_thing_twice_crosses_once(service: Any, make: str) -> None:
    value = kinds[make](600_000, 1)
    copied, came = copied_by(lambda: service.echo([value, {"again": value}, (value,)]))
    assert copied == 600_000
    assert came[0] is came[1]["again"]
    assert came[0] is came[2][0]


def test_shared_memory_twice_crosses_without_a_copy(service: Any) -> None:
    value = atoll.asarray(np.arange(300_000, dtype="u1"))
    copied, came = copied_by(lambda: service.echo([value, value, value[5:], value.reshape(300, 1000).T]))
    assert copied == 0
    assert came[0] is came[1]
    assert np.array_equal(came[2], value[5:])
    assert np.array_equal(came[3], value.reshape(300, 1000).T)


def test_two_arrays_of_the_same_bytes_cross_once(service: Any) -> None:
    value = np.arange(300_000, dtype="u1")
    copied, came = copied_by(
        lambda: service.echo([value, value.view("i1"), value.reshape(3, -1), b"between" * 100_000])
    )
    assert copied == 300_000 + 700_000
    assert np.array_equal(came[1], value.view("i1"))
    assert np.array_equal(came[2], value.reshape(3, -1))
    assert came[3] == b"between" * 100_000


def test_aliases_write_to_one_memory_over_there(write: Callable[[str, str], Path]) -> None:
    file = write(
        "aliases.py",
        """\
        from atoll_worker import expose

        @expose
        def seen(pair):
            one, other = pair
            one[0] = 77
            return int(other[0])
        """,
    )
    value = np.zeros(300_000, "u1")
    with atoll.Service(file) as service:
        assert service.seen([value, value]) == 77
        assert service.seen([value, value.reshape(-1)]) == 77
        assert service.seen([value, value.copy()]) == 0
        shared = atoll.asarray(value)
        assert service.seen([shared, shared]) == 77
        assert not shared.any()
