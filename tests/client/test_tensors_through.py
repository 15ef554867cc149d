# SPDX-License-Identifier: Apache-2.0
"""Arrays and tensors between hosts and workers that have other libraries, or none of them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import atoll

needs_torch = pytest.mark.skipif(
    "ATOLL_TEST_TORCH" not in os.environ, reason="ATOLL_TEST_TORCH names no interpreter that has torch"
)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has nothing but the standard library."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return str(folder / "bin" / "python")


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    """Functions to be closed in the end."""
    functions: list[Any] = []
    yield functions
    for function in functions:
        function.close()


def test_arrays_through_a_worker_without_numpy(bare: str, closing: list[Any]) -> None:
    """They come back as they were; over there they can be looked at."""

    @atoll.function(environment=bare)
    def look(value: Any) -> Any:
        return type(value).__name__, value.dtype, value.shape, value.nbytes, value

    closing.append(look)
    for size in (10, 500):
        base = numpy.arange(size * size, dtype="<f4").reshape(size, size)
        for array in (base, base.T, base[::2, ::-1], base[:3, :4], numpy.broadcast_to(base[0], (3, size)), base > 3):
            name, dtype, shape, nbytes, same = look(array)
            assert (name, dtype, shape, nbytes) == ("ArrayBuffer", array.dtype.str, array.shape, array.nbytes)
            assert same.dtype == array.dtype
            assert numpy.array_equal(same, array)


def test_scalars_of_numpy_where_it_is_not(bare: str, closing: list[Any]) -> None:
    @atoll.function(environment=bare)
    def look(value: Any) -> Any:
        return type(value).__name__, value

    closing.append(look)
    assert look(numpy.float32(1.5)) == ("float", 1.5)
    assert look(numpy.bool_(True)) == ("bool", True)
    name, came = look(numpy.datetime64("2024-02-29"))
    assert name == "ArrayBuffer"
    assert came == numpy.datetime64("2024-02-29")


@needs_torch
@pytest.mark.slow
def test_tensors_where_torch_is_not(closing: list[Any]) -> None:
    """They are arrays of numpy, which share what they shared."""

    @atoll.function(environment=os.environ["ATOLL_TEST_TORCH"], start_timeout=120)
    def ask(what: str, value: Any) -> Any:
        import torch

        if what == "look":
            return type(value).__name__, str(value.dtype), tuple(value.shape)
        base = torch.arange(float(value))
        return {
            "views": [base[: value // 2], base[value // 4 :]],
            "brain": base.to(torch.bfloat16),
            "half": torch.view_as_complex(base.reshape(-1, 2)).to(torch.complex32),
            "parameter": torch.nn.Parameter(base),
            "expanded": base[:1].expand(3, 4),
        }

    closing.append(ask)
    for size in (100, 400_000):
        made = ask("make", size)
        first, second = made["views"]
        assert numpy.array_equal(first, numpy.arange(size // 2, dtype="f4"))
        assert numpy.shares_memory(first, second)
        assert made["brain"].dtype.name == "bfloat16"
        assert made["brain"][:5].astype(float).tolist() == [0, 1, 2, 3, 4]
        assert made["expanded"].strides == (0, 0)
        assert made["parameter"].shape == (size,)
        assert isinstance(made["half"], atoll.ArrayBuffer)
        assert ask("look", made["half"]) == ("Tensor", "torch.complex32", (size // 2,))
        assert ask("look", first) == ("ndarray", "float32", (size // 2,))


HOST = """
import sys
import time

import torch

import atoll


@atoll.function(environment=sys.argv[1])
def same(value):
    import sys

    assert "torch" not in sys.modules and "numpy" not in sys.modules
    return value


@atoll.function(environment=sys.executable, start_timeout=120)
def double(one, two):
    one *= 2
    two *= 2
    return [one, two]


@atoll.function(environment=sys.executable, start_timeout=120)
def fill(value, out):
    out.copy_(value * 2)
    return float(out.sum())


def storage_of(tensor):
    return tensor.untyped_storage().data_ptr()


def until_borrowed(count):
    deadline = time.monotonic() + 20
    while atoll.memory().borrowed != count:
        assert time.monotonic() < deadline, str(atoll.memory())


for size in (100, 500_000):
    base = torch.arange(float(size))
    for value in (base, base[5:], base[::2], base.to(torch.bfloat16), base[:1].expand(7, 8), base[:0]):
        arrived = same(value)
        assert arrived.dtype == value.dtype and arrived.stride() == value.stride(), value
        assert torch.equal(arrived, value)
    for call in (lambda *views: same(list(views)), double):
        one, two = call(base[:60], base[40:])
        assert storage_of(one) == storage_of(two)
        one[-1] = -1
        assert two[19] == -1
    assert one[:40].tolist() == [2.0 * index for index in range(40)]
    assert two[:19].tolist() == [4.0 * index for index in range(40, 59)]
    assert base.tolist() == list(map(float, range(size)))
    parameter = same([torch.nn.Parameter(base, requires_grad=False)])[0]
    assert type(parameter) is torch.nn.Parameter and not parameter.requires_grad
    assert torch.equal(parameter, base)
# In shared memory from the start: views are not copied, and what is written over there is here.
tensor, target = atoll.empty((500, 400), torch.float32), atoll.empty((400, 500), torch.float32)
tensor.fill_(3)
copies = atoll.memory().copies
assert fill(tensor.t(), out=target) == 6 * 200_000
assert target.sum() == 6 * 200_000
assert fill(tensor[5:15, ::4], out=target[100:110, :100]) == 6 * 1000
assert atoll.memory().copies == copies
# A result is one piece of shared memory, passed on as it is, and given back with its last view.
del parameter, arrived
one, two = double(torch.ones(400_000)[:300_000], torch.ones(400_000))
views = [one, two, two]
copies, borrowed = atoll.memory().copies, atoll.memory().borrowed
assert borrowed == 2, borrowed
same(views)
assert atoll.memory().copies == copies
view = views.pop()[5:10]
del one, two
views.clear()
until_borrowed(1)  # the other worker lets go of what it was passed after it has answered
assert view.tolist() == [2.0] * 5
del view
until_borrowed(0)
plain = torch.zeros(30)
assert fill(torch.ones(30), out=plain) == 60
assert plain.sum() == 60
model = torch.nn.Linear(300, 200)
model.load_state_dict(same(dict(model.state_dict())))
print("done")
"""


@needs_torch
@pytest.mark.slow
def test_a_host_with_torch(bare: str, tmp_path: Path) -> None:
    """Both directions, and through a worker that has neither torch nor numpy."""
    (tmp_path / "host.py").write_text(HOST)
    source = str(Path(atoll.__file__).parents[1])
    ran = subprocess.run(
        [os.environ["ATOLL_TEST_TORCH"], "-W", "ignore", tmp_path / "host.py", bare],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((source, sysconfig.get_path("purelib")))},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "done\n", ran.stderr
