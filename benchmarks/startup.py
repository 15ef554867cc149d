# SPDX-License-Identifier: Apache-2.0
"""The figures of starting: importing atoll, opening an environment, the first call. Each part runs in
processes of its own under the benchmark's interpreter; a part that fails has its error instead of figures.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contender import ROOT
from benchmarks.imports import measure_imports
from benchmarks.percentiles import summarize

PART_SECONDS = 600.0


class PartFailed(Exception):
    """A measuring process failed; says what it wrote last."""


def run_module(
    python: Path, module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Runs a measuring module of this package in a process of its own. Returns the object it printed.

    ``environment`` is set on top of this process's variables.
    """
    done = subprocess.run(
        [str(python), "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PART_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise PartFailed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure_opening(python: Path, runs: int) -> dict[str, Any]:
    """Opening a ready environment, each sample in a fresh process, and what one opening starts."""
    run_module(python, "open_environment", "time")  # makes it ready
    taken = [run_module(python, "open_environment", "time")["nanoseconds"] for _ in range(runs)]
    return {"runs": runs, "open": asdict(summarize(taken)), **run_module(python, "open_environment", "count")}


def measure_startup(python: Path, runs: int, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """All parts, by name. A part's value is its figures, or ``{"error": why}``."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "imports": lambda: measure_imports(python, runs),
        "first_call_host": lambda: run_module(python, "first_call", "host", str(runs)),
        "first_call_dependency": lambda: run_module(python, "first_call", "dependency", str(runs)),
        "open_environment": lambda: measure_opening(python, runs),
    }
    results = {}
    for name, part in parts.items():
        progress(f"measuring {name.replace('_', ' ')}")
        try:
            results[name] = part()
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
            progress(f"  left out: {error}")
    return results
