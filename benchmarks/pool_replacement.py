# SPDX-License-Identifier: Apache-2.0
"""How long it takes until a worker that was killed is replaced by one that is ready and has answered a call.

    python -m benchmarks.pool_replacement [quick]

A sample begins with the SIGKILL and ends with the replacement's answer, which needs numpy. Two services in the same
environment, in turns: one with numpy preloaded, so that its workers are forked, and one whose workers are started and
import numpy when they are called. Also torch, where ``ATOLL_BENCH_TORCH`` names an interpreter that has it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from time import perf_counter_ns, sleep
from typing import Any

import atoll
from benchmarks.percentiles import summarize

RUNS, QUICK_RUNS = 40, 4


def total(module):
    import importlib
    import os

    ones = importlib.import_module(module).ones(16)
    return os.getpid(), os.getppid(), float(ones.sum())


def make(module: str, preload: bool, where: dict[str, Any]) -> Any:
    """A function with one worker, which has answered, and which no breaker keeps from dying often."""
    options: dict[str, Any] = {"preload": [module]} if preload else {}
    function = atoll.function(restart=atoll.Restart(max_restarts=10_000), start_timeout=120, **where, **options)(total)
    parent = function(module)[1]
    if preload == (parent == os.getpid()):
        raise RuntimeError(f"preload={preload}, and yet the worker's parent is {parent}")
    return function


def replace(function: Any, module: str) -> int:
    """Nanoseconds until the next worker has answered."""
    before = function.pid
    begin = perf_counter_ns()
    os.kill(before, signal.SIGKILL)
    while function.pid in (before, None):
        sleep(0.0002)
    pid, _, ones = function(module)
    taken = perf_counter_ns() - begin
    if pid == before or ones != 16.0:
        raise RuntimeError(f"pid {before} -> {pid}, {ones}")
    return taken


def compare(module: str, where: dict[str, Any], runs: int) -> dict[str, Any]:
    """Both, in turns."""
    forked, started = make(module, True, where), make(module, False, where)
    samples: dict[str, list[int]] = {"forked": [], "started": []}
    for _ in range(runs):
        samples["forked"].append(replace(forked, module))
        samples["started"].append(replace(started, module))
    forked.close()
    started.close()
    return {name: asdict(summarize(taken)) for name, taken in samples.items()}


def main() -> int:
    runs = QUICK_RUNS if "quick" in sys.argv else RUNS
    result: dict[str, Any] = {"runs": runs, "numpy": compare("numpy", {"dependencies": ["numpy"]}, runs)}
    torch = os.environ.get("ATOLL_BENCH_TORCH")
    if torch:
        result["torch"] = compare("torch", {"environment": torch}, runs)
    atoll.shutdown()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
