# SPDX-License-Identifier: Apache-2.0
"""How the CUDA driver is called: against a library that has its functions (``stand_in_libcuda.c``), built here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from atoll_worker import cuda_driver
from atoll_worker.cuda_driver import DriverError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the driver's functions, typed as in its header, that checks what it is called with."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc)")
    built = tmp_path_factory.mktemp("library") / "libcuda_of_test.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(built), str(HERE / "stand_in_libcuda.c")], check=True)
    return built


@pytest.fixture
def real(library: Path, monkeypatch: pytest.MonkeyPatch) -> cuda_driver.Cuda:
    """``Cuda``, on that library."""
    monkeypatch.setattr(cuda_driver, "_LIBRARY", str(library))
    return cuda_driver.Cuda()


# Above 4 GiB, as addresses are: an int would cut them.
BASE = 0x7F1234000000


def test_the_calls_of_the_driver(real: cuda_driver.Cuda) -> None:
    assert real.devices() == [bytes([0, *range(1, 16)]), bytes([1, *range(1, 16)])], "also with a zero within"
    assert real.device_of(BASE + 5) == 1
    assert real.allocation(1, BASE + 5) == (BASE, 0x123456789)
    handle = real.export(1, BASE)
    assert len(handle) == cuda_driver.HANDLE_SIZE
    assert handle[:9] == BASE.to_bytes(8, "little") + b"\0"
    assert handle[-1] == 0x5A
    assert real.open(1, handle) == BASE + 0x1000000
    real.close(1, BASE + 0x1000000)
    real.synchronize(0)
    real.synchronize(0, 0x7F0000000001)


def test_what_the_driver_refuses(real: cuda_driver.Cuda) -> None:
    with pytest.raises(DriverError, match=r"^cuIpcOpenMemHandle_v2: CUDA_ERROR_TEST, what error 400 means$"):
        real.open(0, bytes(64))
    with pytest.raises(DriverError, match="it is open in this process already"):
        real.open(1, b"\x08" * 64)
    with pytest.raises(DriverError, match=r"^it is managed memory; cuIpcGetMemHandle: CUDA_ERROR_TEST"):
        real.export(1, BASE + 1)
    with pytest.raises(DriverError, match=r"^it is of a memory pool or made of pieces"):
        real.export(1, BASE + 2)
    with pytest.raises(DriverError, match=r"^cuPointerGetAttribute: CUDA_ERROR_TEST"):
        real.device_of(7)
    with pytest.raises(DriverError, match="forked"):
        real.synchronize(0, 3)
    real.synchronize(0, 0x7F0000000001)  # what failed left no context behind


def test_no_driver_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda_that_is_not_there.so.1")
    with pytest.raises(DriverError, match="cannot be loaded"):
        cuda_driver.Cuda()
