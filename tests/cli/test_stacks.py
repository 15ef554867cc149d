# SPDX-License-Identifier: Apache-2.0
"""``atoll stacks``: from another terminal, of any worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import atoll

pytest.importorskip("typer")

SERVICE = """\
from atoll_worker import expose

@expose
def nothing():
    return None
"""


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(Path(atoll.__file__).parents[1])}
    command = [sys.executable, "-m", "atoll.cli", "stacks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)


def test_both_kinds(tmp_path: Path) -> None:
    file = tmp_path / "idle.py"
    file.write_text(SERVICE)
    with atoll.Service(file) as service:
        service.nothing()  # it is ready some moments before it serves
        done = run_command(str(service.pid))
        assert done.returncode == 0, done.stderr
        python, native = done.stdout.split("Native stacks")
        assert python.startswith(f"Python stacks of process {service.pid}\n")
        assert "in serve" in python
        assert str(service.pid) in native
        done = run_command("--no-native", str(service.pid))
        assert "in serve" in done.stdout
        assert "Native" not in done.stdout
        service.nothing()


def test_not_a_worker() -> None:
    done = run_command(str(os.getpid()))
    assert done.returncode == 1
    assert f"error: process {os.getpid()} (" in done.stderr
    assert "is no worker of atoll" in done.stderr
    assert done.stdout == ""


def test_no_such_process() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    done = run_command(str(ended.pid))
    assert done.returncode == 1
    assert f"error: there is no process {ended.pid}" in done.stderr
    assert run_command("vision").returncode == 2
    assert run_command("0").returncode == 2
