# SPDX-License-Identifier: Apache-2.0
"""A group of figures is measured in parts: modules of this package, each run in a process of its own under the
benchmark's interpreter. A part that fails has its error instead of figures, and takes no other part with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.startup import run_module


def measure_parts(
    group: str,
    parts: Iterable[str],
    python: Path,
    quick: bool,
    progress: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs ``benchmarks.GROUP_PART`` for each part. A part's value is its figures, or ``{"error": why}``.

    ``environment`` is set on top of this process's variables.
    """
    results: dict[str, dict[str, Any]] = {}
    for part in parts:
        progress(f"measuring {group.replace('_', ' ')}: {part}")
        try:
            results[part] = run_module(
                python, f"{group}_{part}", *(["quick"] if quick else []), environment=environment
            )
        except Exception as error:
            results[part] = {"error": f"{type(error).__name__}: {error}"}
            progress(f"  left out: {error}")
    return results
