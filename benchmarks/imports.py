# SPDX-License-Identifier: Apache-2.0
"""What ``import atoll`` costs beside ``import asyncio``: each import in a fresh process, in interleaved
rounds.

Two views: the time around the import statement inside the process, and the whole process less an empty one.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from benchmarks.percentiles import summarize

MODULES = ("atoll", "asyncio")
TIMED_IMPORT = (
    "from time import perf_counter_ns as now; begin = now(); import {module}; end = now(); print(end - begin)"
)


class ImportFailed(Exception):
    """A module could not be imported; says what the interpreter said last."""


def run_code(python: Path, code: str, folder: str) -> bytes:
    """Runs ``python -c code`` in the folder. Returns what it printed."""
    done = subprocess.run([str(python), "-c", code], cwd=folder, capture_output=True, check=False)
    if done.returncode != 0:
        raise ImportFailed(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    return done.stdout


def whole_process(python: Path, code: str, folder: str) -> int:
    """Runs ``python -c code`` to its end. Returns nanoseconds, from before the start until it has been
    waited for.
    """
    begin = perf_counter_ns()
    run_code(python, code, folder)
    return perf_counter_ns() - begin


def timed_inside(python: Path, module: str, folder: str) -> int:
    """The nanoseconds that the import statement takes in a fresh process, by the process's own clock."""
    code = TIMED_IMPORT.format(module=module)
    return int(run_code(python, code, folder))


def measure_imports(python: Path, runs: int) -> dict[str, Any]:
    """Both views in nanoseconds. Raises ImportFailed."""
    inside: dict[str, list[int]] = {module: [] for module in MODULES}
    whole: dict[str, list[int]] = {"pass": [], **{f"import {module}": [] for module in MODULES}}
    with tempfile.TemporaryDirectory() as folder:
        for module in MODULES:
            timed_inside(python, module, folder)  # compiles what is not compiled yet
        for _ in range(runs):
            for code in random.sample(list(whole), len(whole)):
                whole[code].append(whole_process(python, code, folder))
            for module in random.sample(MODULES, len(MODULES)):
                inside[module].append(timed_inside(python, module, folder))
    empty = summarize(whole["pass"])
    return {
        "runs": runs,
        "inside_p50": {module: summarize(taken).p50 for module, taken in inside.items()},
        "inside_p99": {module: summarize(taken).p99 for module, taken in inside.items()},
        "process_p50": {code: summarize(taken).p50 for code, taken in whole.items()},
        "process_less_empty_p50": {module: summarize(whole[f"import {module}"]).p50 - empty.p50 for module in MODULES},
    }
