# SPDX-License-Identifier: Apache-2.0
"""Tensors of torch are the same on the other side, and pass through where torch is not.

torch is too large for everybody's environment: ``ATOLL_TEST_TORCH`` names an interpreter that has it, which runs
``tensor_checks``.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll_worker
from atoll_worker.adapters import Unsupported
from atoll_worker.array_buffer import ArrayBuffer
from atoll_worker.arrays import Carrier
from atoll_worker.errors import DecodeError
from atoll_worker.tensors import (
    Storage,
    StoragePart,
    _part_for,
    _reduce_tensor,
    restore_name,
    restore_parameter,
    restore_size,
    restore_storage,
    restore_tensor,
)
from atoll_worker.values import INLINE_BUFFER, Decoder, Encoder
from parameters import described

SOURCE = Path(atoll_worker.__file__).parents[1]
CHECKS = Path(__file__).with_name("tensor_checks.py")
NAMES = [
    node.name
    for node in ast.parse(CHECKS.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
needs_torch = pytest.mark.skipif(
    "ATOLL_TEST_TORCH" not in os.environ, reason="ATOLL_TEST_TORCH names no interpreter that has torch"
)


def run_checks(*arguments: str, without: str = "") -> str:
    """The output of ``tensor_checks`` where torch is; ``without`` a module, if one is named."""
    script = f"import sys, runpy; {f'sys.modules[{without!r}] = None; ' if without else ''}"
    script += "sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    ran = subprocess.run(
        [os.environ["ATOLL_TEST_TORCH"], "-W", "ignore", "-c", script, CHECKS, *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def checked() -> dict[str, str | None]:
    """What was wrong with each check."""
    found: dict[str, str | None] = json.loads(run_checks())
    return found


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_where_torch_is(name: str, checked: dict[str, str | None]) -> None:
    if checked[name] is not None:
        pytest.fail(checked[name] or "", pytrace=False)


@needs_torch
@pytest.mark.slow
def test_torch_without_numpy() -> None:
    """Neither end needs numpy for a tensor."""
    names = ["check_every_dtype", "check_every_layout", "check_views_of_one_storage_stay_views", "check_parameters"]
    found = json.loads(run_checks(*names, without="numpy"))
    assert found == dict.fromkeys(names)


@needs_torch
@pytest.mark.slow
def test_tensors_where_torch_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They arrive as arrays of numpy where that has the dtype; else, or without numpy, they are passed on unchanged."""
    run_checks("write", str(tmp_path / "tensors"))
    encoded = pickle.loads((tmp_path / "tensors").read_bytes())

    def decode(name: str) -> Any:
        payload, buffers = encoded[name]
        return Decoder(checked=True, side="the host").decode(payload, [bytearray(one) for one in buffers])

    assert decode("int32").dtype == "<i4"
    assert decode("bool").dtype == "?"
    assert decode("complex128").dtype == "<c16"
    assert decode("bfloat16").dtype == ml_dtypes.bfloat16
    assert decode("float8_e5m2").dtype == ml_dtypes.float8_e5m2
    for name in ("float32", "bfloat16", "float8_e4m3fn"):
        assert decode(name).view("u1").ravel()[:202].tolist() == [*range(101), *range(101)]
    half = decode("complex32")
    assert isinstance(half, ArrayBuffer)
    assert (half.origin, half.dtype, half.itemsize) == ("torch", "complex32", 4)
    assert decode("every other").tolist() == numpy.arange(480).reshape(6, 8, 10)[:, ::2].tolist()
    assert decode("windows").tolist() == [list(range(start, start + 4)) for start in range(7)]
    assert decode("no items, many axes").shape == (3, 0, 2)
    assert decode("size") == (3, 4)
    assert type(decode("size")) is tuple
    assert decode("parameter").tolist() == [1, 1, 1]
    first, second, small = decode("shared")
    assert numpy.shares_memory(first, second)
    assert numpy.shares_memory(first, small)
    first[12_000] = -1
    assert second[2_000] == -1
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ml_dtypes", None)
        brain = decode("bfloat16")
        assert isinstance(brain, ArrayBuffer)
        assert brain.dtype == "bfloat16"

    # Without numpy nothing is lost on the way.
    monkeypatch.setitem(sys.modules, "numpy", None)
    encoder = Encoder()
    passed_on = {}
    for name in encoded:
        arrived = decode(name)
        if name not in ("size", "parameter"):
            assert all(type(one) is ArrayBuffer for one in (arrived if name == "shared" else [arrived]))
            payload = encoder.encode(arrived)
            passed_on[name] = payload, [bytes(buffer) for buffer in encoder.take_buffers()]
    (tmp_path / "tensors").write_bytes(pickle.dumps(passed_on))
    run_checks("compare", str(tmp_path / "tensors"))


@pytest.fixture(autouse=True, scope="module")
def without_torch() -> Iterator[None]:
    """Whoever has torch in this environment tests the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        yield


def storage() -> Storage:
    return restore_storage(b"12345678")


@pytest.mark.parametrize(
    "parts",
    [
        (storage(), "float32", 4, 0, (3,), (1,)), (storage(), "float32", 4, 8, (1,), (1,)),
        (storage(), "float32", 4, -4, (1,), (1,)), (storage(), "float32", 4, 2, (1,), (1,)),
        (storage(), "float32", 4, 0, (2,), (-1,)), (storage(), "float32", 4, 0, (-2,), (1,)),
        (storage(), "float32", 4, 0, (2, 2), (1,)), (storage(), "float32", 0, 0, (2,), (1,)),
        (storage(), "float32", 2, 0, (4,), (1,)), (storage(), "float32", 4, 0, (0,), (1,)),
        (None, "float32", 4, 0, (2,), (1,)), ("x", "float32", 4, 0, (1,), (1,)),
        (storage(), "bfloat16", 4, 0, (2,), (1,)),
        (storage(), "float32", 4, 0, (1 << 62,), (1 << 62,)), (storage(), "float32", 4, 0, (2, 1 << 62), (1, 4)),
    ],
    ids=described,
)  # fmt: skip
def test_a_description_that_lies(parts: Any) -> None:
    """An error, never other memory."""
    with pytest.raises((DecodeError, ValueError)):
        restore_tensor(*parts)


def test_only_what_is_there_is_an_attribute() -> None:
    """A dtype that numpy's extension does not have passes through."""
    for name in ("float8_e4m3", "float8_of_another_year"):
        arrived = restore_tensor(storage(), name, 1, 0, (2, 4), (1, 2))
        assert isinstance(arrived, ArrayBuffer) == (not hasattr(ml_dtypes, name))
        assert arrived.shape == (2, 4)


def test_what_is_broadcast_is_read_only() -> None:
    """As arrays of numpy are."""
    arrived = restore_tensor(storage(), "float32", 4, 4, (3, 1), (0, 1))
    assert arrived.shape == (3, 1)
    assert not arrived.flags.writeable
    assert restore_tensor(storage(), "int16", 2, 2, (3,), (1,)).flags.writeable


def test_what_needs_torch_says_so() -> None:
    with pytest.raises(DecodeError, match=r"a torch.dtype came, but torch cannot be imported by .*; add torch to"):
        restore_name("dtype", "float32")
    assert restore_size((1, 2)) == (1, 2)
    assert restore_parameter("data", True) == "data"


def test_a_torch_that_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """On either side."""

    class Tensor:
        __module__ = "torch"

    old = types.ModuleType("torch")
    old.Tensor, old.__version__ = Tensor, "1.13.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", old)
    with pytest.raises(DecodeError, match=r"torch 1\.13\.1 of this side is too old; add torch>=2"):
        restore_tensor(storage(), "float32", 4, 0, (2,), (1,))
    with pytest.raises(Unsupported, match=r"of torch 1\.13\.1; 2\.0 or later is needed"):
        _reduce_tensor(Tensor(), Notebook())


def test_a_storage_is_found_again() -> None:
    """An array buffer of a tensor is passed on with all that shares its memory, once."""
    shared = restore_storage(bytearray(2 * INLINE_BUFFER))
    one = restore_tensor(shared, "complex32", 4, 0, (2000,), (1,))
    two = restore_tensor(shared, "complex32", 4, 400, (2000,), (2,))
    encoder = Encoder()
    payload = encoder.encode([one, two])
    buffers = encoder.take_buffers()
    assert [buffer.nbytes for buffer in buffers] == [2 * INLINE_BUFFER]
    again = Decoder(checked=True, side="the host").decode(payload, [bytearray(buffer) for buffer in buffers])
    again[0].data[400] = 7
    assert again[1].data[400] == 7
    assert (again[1].offset, again[1].strides, again[1].dtype) == (400, (8,), "complex32")


# -- which parts of a storage cross ------------------------------------------------------------------------------------


class Notebook(Carrier):
    """Takes notes, and starts over once."""

    def __init__(self) -> None:
        self.notes = {}
        self.passes = 0

    def again(self) -> bool:
        self.wants_again = self.passes == 0
        return self.wants_again

    def encode(self, spans: list[tuple[int, int]]) -> list[StoragePart]:
        """The parts for these spans."""
        self.wants_again = False
        parts = [_part_for(self, None, 4096, *span) for span in spans]
        if self.wants_again:
            self.passes = 1
            return self.encode(spans)
        return parts


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=12))
def test_parts_are_what_is_used_and_no_more(lengths: list[tuple[int, int]]) -> None:
    """Every view lies in a part; views with bytes in common lie in the same; no byte crosses that is no view's."""
    spans = [(64 * low, 64 * low + 16 * length) for low, length in lengths]
    parts = Notebook().encode(spans)
    for (low, high), part in zip(spans, parts, strict=True):
        assert part.low <= low < high <= part.high
    used = set().union(*(range(low, high) for low, high in spans))
    different = {id(part): part for part in parts}.values()
    assert sum(part.high - part.low for part in different) == len(used)
    for one, first in zip(spans, parts, strict=True):
        for other, second in zip(spans, parts, strict=True):
            if max(one[0], other[0]) < min(one[1], other[1]):
                assert first is second


def test_parts_that_come_too_late_are_apart() -> None:
    """In the second pass nothing is started over: what was not known then crosses by itself."""
    notebook = Notebook()
    notebook.passes = 1
    first = _part_for(notebook, None, 4096, 0, 128)
    late = _part_for(notebook, None, 4096, 64, 256)
    assert (first.low, first.high) == (0, 128)
    assert (late.low, late.high) == (64, 256)
