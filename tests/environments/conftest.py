# SPDX-License-Identifier: Apache-2.0
"""Real environments in a cache of each test's own. What uv downloads is shared: it is uv's business to keep that."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.environments import Environment, EnvironmentRequest, environment_request, open_environment
from atoll.manifest import function_spec

SOURCE = str(Path(atoll.__file__).parents[1])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which need not exist yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ATOLL_CACHE_DIR", str(folder))
    monkeypatch.delenv("ATOLL_OFFLINE", raising=False)
    return folder


@pytest.fixture
def request_for() -> Callable[..., EnvironmentRequest]:
    """Options -> the request of a function that has them."""
    return lambda **options: environment_request(function_spec("mean", **options))


@pytest.fixture
def open_for(request_for: Callable[..., EnvironmentRequest]) -> Callable[..., Environment]:
    """Options -> an open environment."""

    def open_for(*, offline: bool | None = None, **options: Any) -> Environment:
        return open_environment(request_for(**options), offline=offline)

    return open_for


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python code in a process of its own that can import atoll; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, **options: Any) -> subprocess.Popen[str]:
        file = tmp_path / f"program{len(started)}.py"
        file.write_text(f"import sys\nsys.path.insert(0, {SOURCE!r})\n{code}", encoding="utf-8")
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([sys.executable, "-u", str(file)], text=True, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Run Python code to its end in a process of its own; what it printed."""

    def run(code: str, **options: Any) -> str:
        process = start(code, **options)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return output

    return run


@pytest.fixture
def fake_interpreter(tmp_path: Path) -> Callable[..., str]:
    """Make an executable that answers as an interpreter of some version does, or does something else."""

    def make(name: str, version: str = "3.12.0", *, script: str | None = None, **answer: Any) -> str:
        path = tmp_path / "fake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        said: Mapping[str, Any] = {
            "version": list(map(int, version.split("."))),
            "phase": 3,
            "serial": 0,
            "implementation": "cpython",
            "abi": ".so",
            "platform": "linux-x86_64",
            "executable": str(path),
            "base": str(path),
            "prefix": "/usr",
            "base_prefix": "/usr",
            "free_threaded": False,
            "path": [],
            "stdlib": [],
            **answer,
        }
        path.write_text(script or f"#!/bin/sh\necho 'atoll-interpreter:{json.dumps(said)}'\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def python_says(environment: Environment, code: str) -> str:
    """What the environment's interpreter prints when it runs the code as a worker would."""
    done = subprocess.run([environment.python, "-I", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def nothing_half_made(cache: Path) -> bool:
    """Whether the cache holds whole environments only."""
    environments = cache / "environments"
    whole = all((one / "record.json").is_file() for one in (environments.iterdir() if environments.is_dir() else []))
    return whole and not (os.listdir(cache / "building") if (cache / "building").is_dir() else [])
