# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks``: makes the environment, measures everything in one run, writes table, JSON and
plot.

The order of work only; what is measured, and how, is said in the modules this calls.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.catalogue import CATALOGUE, Entry
from benchmarks.comparison import QUICK, Comparison, Effort, compare
from benchmarks.contender import ROOT
from benchmarks.environment import make_environment
from benchmarks.figures import collect_figures
from benchmarks.go_figures import REQUIREMENTS as GO_REQUIREMENTS
from benchmarks.go_figures import measure_go
from benchmarks.machine import describe_machine
from benchmarks.pooling import measure_pool
from benchmarks.pyproc_figures import measure_pyproc
from benchmarks.report import PLOT_NAME, RESULTS, render
from benchmarks.starting import BUILD
from benchmarks.startup import measure_startup
from benchmarks.zero_copying import REQUIREMENTS, measure_zero_copy

STARTUP, POOL, ZERO_COPY, PYPROC, GO = GROUPS = "startup", "pool", "zero_copy", "pyproc", "go"
STARTUP_RUNS, QUICK_STARTUP_RUNS = 40, 5


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. ``--only`` becomes a list of known names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, under a minute once installed")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"of: {', '.join((*CATALOGUE, *GROUPS))}")
    parser.add_argument(
        "--rounds", type=int, help=f"interleaved rounds (default {Effort.rounds}, quick {QUICK.rounds})"
    )
    parser.add_argument("--with-ray", action="store_true", help="install ray, which is large, and measure its actor")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the results (default: benchmarks/results; a quick or partial run keeps to the build folder)",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.only or [] if name not in {*CATALOGUE, *GROUPS}]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if options.output is None:
        options.output = BUILD / "benchmarks" / "results" if options.quick or options.only else RESULTS
    return options


def chosen_entries(options: argparse.Namespace) -> list[Entry]:
    """The contenders to measure, in the catalogue's order."""
    if options.only:
        return [entry for entry in CATALOGUE.values() if entry.name in options.only]
    return [entry for entry in CATALOGUE.values() if not entry.optional or options.with_ray]


def current_commit() -> str | None:
    """The commit of the working tree, with ``+`` when it was changed since; None outside of a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def progress(message: str) -> None:
    """One line on standard error, so that standard output holds the table only."""
    print(message, file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for. Returns the results, ready for JSON."""
    entries = chosen_entries(options)
    effort = QUICK if options.quick else Effort()
    if options.rounds:
        effort = replace(effort, rounds=options.rounds)
    progress("making the environment")
    wanted = [requirement for entry in entries for requirement in entry.requirements]
    if not options.only or ZERO_COPY in options.only:
        wanted += REQUIREMENTS
    if not options.only or GO in options.only:
        wanted += GO_REQUIREMENTS
    python, missing = make_environment(BUILD / "bench-venv", wanted)
    machine = describe_machine(python)
    begin = time.monotonic()
    installed = [entry for entry in entries if not missing.keys() & {*entry.requirements}]
    comparison = compare(installed, python, effort, progress) if installed else Comparison()
    for entry in entries:
        for requirement in missing.keys() & {*entry.requirements}:
            comparison.left_out[entry.name] = f"{requirement} could not be installed: {missing[requirement]}"
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": current_commit(),
        "machine": machine,
        "options": {"quick": options.quick, **asdict(effort)},
        "contenders": comparison.measured,
        "left_out": comparison.left_out,
    }
    if not options.only or STARTUP in options.only:
        runs = QUICK_STARTUP_RUNS if options.quick else STARTUP_RUNS
        results["startup"] = measure_startup(python, runs, progress)
    if not options.only or POOL in options.only:
        results["pool"] = measure_pool(python, options.quick, progress)
    if not options.only or ZERO_COPY in options.only:
        results["zero_copy"] = measure_zero_copy(python, options.quick, progress)
    if not options.only or PYPROC in options.only:
        results["pyproc"] = measure_pyproc(python, options.quick, progress)
    if not options.only or GO in options.only:
        results["go"] = measure_go(python, options.quick, progress)
    results["seconds"] = round(time.monotonic() - begin, 1)
    results["figures"] = [{**asdict(figure), "met": figure.met} for figure in collect_figures(results)]
    write(results, options.output, python)
    return results


def write(results: dict[str, Any], folder: Path, python: Path) -> None:
    """Writes results.json, the plot, and results.md into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source, picture = folder / "results.json", folder / PLOT_NAME
    source.write_text(json.dumps(results, indent=1) + "\n")
    plot = None
    if results["contenders"]:
        command = [str(python), "-m", "benchmarks.plot", str(source), str(picture)]
        drawn = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        plot = PLOT_NAME if drawn.returncode == 0 else None
        if drawn.returncode != 0:
            progress(f"no plot: {drawn.stderr.strip().splitlines()[-1]}")
    (folder / "results.md").write_text("# Results\n\n" + render(results, plot))


def main() -> int:
    options = parse_arguments()
    options.output = options.output.resolve()
    results = run(options)
    print(render(results))
    progress(f"{results['seconds']} s; table, JSON and plot are in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
