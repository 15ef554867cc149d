# SPDX-License-Identifier: Apache-2.0
"""What the first call of a ready environment costs, process start included, beside ``python -I -c pass``.

Usage: ``python -m benchmarks.first_call host|dependency RUNS``; prints one JSON object, times in nanoseconds.

A sample begins when a function that was never called is called and ends when its result is there; it is
closed afterwards, untimed. The empty process is started by the same program with the worker's own
interpreter, in turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from time import perf_counter_ns
from typing import Any

import atoll
from benchmarks.percentiles import summarize
from benchmarks.workload import LABEL, THRESHOLD, check

OPTIONS: dict[str, dict[str, Any]] = {"host": {}, "dependency": {"dependencies": ["numpy"]}}


def detect(image_id, *, threshold=0.5, label="cat"):
    return {"id": image_id, "label": label, "score": threshold}


def executable():
    import sys

    return sys.executable


def empty_process(python: str) -> int:
    """Starts ``python -I -c pass`` and waits for its end. Returns nanoseconds."""
    begin = perf_counter_ns()
    subprocess.run([python, "-I", "-c", "pass"], check=True, stdin=subprocess.DEVNULL)
    return perf_counter_ns() - begin


def first_call(options: dict[str, Any], number: int) -> int:
    """A fresh function's first call. Returns nanoseconds."""
    function = atoll.function(**options)(detect)
    try:
        begin = perf_counter_ns()
        reply = function(number, threshold=THRESHOLD, label=LABEL)
        end = perf_counter_ns()
    finally:
        function.close()
    check(number, reply)
    return end - begin


def measure(kind: str, runs: int) -> dict[str, Any]:
    """Both, in turns. The environment is built before anything is timed."""
    options = OPTIONS[kind]
    where = atoll.function(**options)(executable)
    python = where()
    where.close()
    calls, empties = [], []
    first_call(options, 0)
    empty_process(python)
    for number in range(runs):
        calls.append(first_call(options, number))
        empties.append(empty_process(python))
    atoll.shutdown()
    return {
        "runs": runs,
        "first_call": asdict(summarize(calls)),
        "empty_process": asdict(summarize(empties)),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
