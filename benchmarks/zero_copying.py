# SPDX-License-Identifier: Apache-2.0
"""The figures of arrays: how often their bytes are copied, by how many ways, and what is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contender import ROOT
from benchmarks.parts import measure_parts

PARTS = ("argument", "result", "place", "small", "threshold", "many", "frames", "table")
# What the peers and the tables among the parts need.
REQUIREMENTS = ("numpy", "loky", "pyarrow")


def measure_zero_copy(python: Path, quick: bool, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """All parts, by name, as ``measure_parts`` gives them; ``tensor`` where an interpreter with torch is named."""
    results = measure_parts("zero_copy", PARTS, python, quick, progress)
    torch = os.environ.get("ATOLL_BENCH_TORCH")
    if torch:
        path = {"PYTHONPATH": str(ROOT / "src")}  # atoll need not be installed there; what it needs must be
        results |= measure_parts("zero_copy", ("tensor",), Path(torch), quick, progress, path)
    return results
