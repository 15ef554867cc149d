# SPDX-License-Identifier: Apache-2.0
"""``atoll stubs``: what it writes, where, and ``--check``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("typer")

from atoll.cli import main

SERVICE = "from atoll_worker import expose\n@expose\ndef detect(n: int) -> str: ...\n"


class Done(NamedTuple):
    status: int
    out: str
    err: str


Stubs = Callable[..., Done]


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Stubs:
    """Run ``atoll stubs`` with arguments, in this process and a folder with a service."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "vision.py").write_text(SERVICE)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["atoll", "stubs", *arguments])
        status = main()
        return Done(status, *capsys.readouterr())

    return run


def test_beside_the_service(stubs: Stubs, tmp_path: Path) -> None:
    file = tmp_path / "services" / "vision_client.py"
    assert stubs("services/vision.py") == Done(0, f"✓ {file} written\n", "")
    assert "def detect(self, /, n: int) -> str:" in file.read_text()
    before = file.stat().st_mtime_ns
    assert stubs("services/vision.py") == Done(0, f"✓ {file} was up to date\n", "")
    assert file.stat().st_mtime_ns == before


def test_somewhere_else_and_on_stdout(stubs: Stubs, tmp_path: Path) -> None:
    assert stubs("services/vision.py", "-o", "client.py").status == 0
    text = (tmp_path / "client.py").read_text()
    done = stubs("services/vision.py", "--output", "client.py", "--stdout")
    assert done == Done(0, text, "")
    assert '"services", "vision.py")' in text
    assert not (tmp_path / "services" / "vision_client.py").exists()


def test_check(stubs: Stubs, tmp_path: Path) -> None:
    file = tmp_path / "services" / "vision_client.py"
    done = stubs("services/vision.py", "--check")
    assert done == Done(1, "", f"{file} is not there: run atoll stubs services/vision.py\n")
    assert not file.exists()
    stubs("services/vision.py")
    assert stubs("services/vision.py", "--check") == Done(0, f"✓ {file} is up to date\n", "")
    (tmp_path / "services" / "vision.py").write_text(SERVICE.replace("int", "float"))
    done = stubs("services/vision.py", "--check")
    assert done == Done(1, "", f"{file} is out of date: run atoll stubs services/vision.py\n")
    assert "int" in file.read_text()


def test_errors_are_messages(stubs: Stubs, tmp_path: Path) -> None:
    done = stubs("services/nowhere.py")
    assert done.status == 1
    assert done.err.startswith("error: ")
    assert "there is no such file" in done.err
    assert stubs("services/vision.py", "--check", "--stdout").status == 2
    assert stubs().status == 2
    (tmp_path / "services" / "vision.py").write_text("def f(): ...\n")
    assert "exposes nothing" in stubs("services/vision.py").err
    done = stubs("services/vision.py:Vision")
    assert "no Service class 'Vision'" in done.err
    (tmp_path / "services" / "vision.py").write_text(SERVICE)
    done = stubs("services/vision.py", "-o", "no/such/folder/client.py")
    assert done.status == 1
    assert done.err == "error: no/such/folder/client.py cannot be written: No such file or directory\n"
    assert stubs("services/vision.py", "-o", "services").err == "error: services cannot be read: Is a directory\n"


def test_files_that_are_not_ours_are_not_replaced(stubs: Stubs, tmp_path: Path) -> None:
    file = tmp_path / "services" / "vision_client.py"
    file.write_text("# written by hand\n")
    done = stubs("services/vision.py")
    assert done.status == 1
    assert f"error: {file} was not written by atoll stubs" in done.err
    assert file.read_text() == "# written by hand\n"
    assert stubs("services/vision.py", "-o", "services/vision.py").status == 1
    assert (tmp_path / "services" / "vision.py").read_text() == SERVICE
