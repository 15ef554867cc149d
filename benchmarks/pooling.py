# SPDX-License-Identifier: Apache-2.0
"""The figures of a pool: its own cost on a call, many items, many callers, streams, callbacks, what it costs to stand
by, and how soon a worker is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.parts import measure_parts

PARTS = ("call", "map", "callers", "stream", "callback", "idle", "replacement")


def measure_pool(python: Path, quick: bool, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """All parts, by name, as ``measure_parts`` gives them."""
    return measure_parts("pool", PARTS, python, quick, progress)
