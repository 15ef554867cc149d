# SPDX-License-Identifier: Apache-2.0
"""The figures of a pool: its own cost on a call, many items, many callers, streams, callbacks, what it costs to stand
by, and how soon a worker is replaced. Each part runs in a process of its own under the benchmark's interpreter; a part
that fails has its error instead of figures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.startup import run_module

PARTS = ("call", "map", "callers", "stream", "callback", "idle", "replacement")


def measure_pool(python: Path, quick: bool, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """All parts, by name. A part's value is its figures, or ``{"error": why}``."""
    results: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        progress(f"measuring a pool: {part}")
        try:
            results[part] = run_module(python, f"pool_{part}", *(["quick"] if quick else []))
        except Exception as error:
            results[part] = {"error": f"{type(error).__name__}: {error}"}
            progress(f"  left out: {error}")
    return results
