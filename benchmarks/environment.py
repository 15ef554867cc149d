# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own environment: atoll (editable), the peers and the plotting library under one
interpreter.

What always holds: it lies in the build folder, is made by uv, and is filled again only when what it should
hold changes; a package that cannot be installed leaves its contender out, with the installer's words, and
nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.catalogue import ATOLL
from benchmarks.contender import ROOT

PLOTTING = "matplotlib"


class EnvironmentUnavailable(Exception):
    """uv is missing, or it could not make the environment at all."""


def find_uv() -> str:
    """uv beside this interpreter, else on PATH. Raises EnvironmentUnavailable."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise EnvironmentUnavailable("uv was found neither beside this interpreter nor on PATH")
    return found


def make_environment(folder: Path, requirements: Iterable[str]) -> tuple[Path, dict[str, str]]:
    """Makes or refreshes the environment. Returns its interpreter and, by requirement, why one is missing."""
    uv = find_uv()
    python = folder / "bin" / "python"
    wanted = sorted({ATOLL, PLOTTING, *requirements})
    stamp = folder / "benchmark-stamp.json"
    content = {
        "wanted": wanted,
        "pyproject": hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest(),
    }
    if python.exists() and stamp.exists() and json.loads(stamp.read_text()) == content:
        return python, {}
    if not python.exists():
        made = _uv([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
        if made is not None:
            raise EnvironmentUnavailable(made)
    failures: dict[str, str] = {}
    for requirement in wanted:
        what = ["--editable", str(ROOT)] if requirement == ATOLL else [requirement]
        failure = _uv([uv, "pip", "install", "--quiet", "--python", str(python), *what])
        if failure is not None:
            failures[requirement] = failure
    if not failures:
        stamp.write_text(json.dumps(content))
    return python, failures


def _uv(command: list[str]) -> str | None:
    """Runs uv. Returns what it said if it failed, else None."""
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return None
    return _essence(done.stderr) or f"uv ended with {done.returncode}"


def _essence(said: str) -> str:
    """The lines that name an error, without what only this machine knows."""
    lines = [line.strip() for line in said.replace(str(ROOT), ".").splitlines() if line.strip()]
    return "; ".join([line for line in lines if re.match(r"(error:|\w*Error:|×)", line)] or lines[-1:])
