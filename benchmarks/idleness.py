# SPDX-License-Identifier: Apache-2.0
"""How much processor time a contender uses while nobody calls it: one that polls disturbs all the others.

Where /proc is missing everyone counts as idle.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from benchmarks.family import processor_seconds


def idle_loads(pids: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Waits ``seconds`` without calling anyone. Returns each contender's load: 1.0 is one processor kept
    busy.
    """
    before = {name: processor_seconds(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    return {name: (processor_seconds(pid) - before[name]) / seconds for name, pid in pids.items()}
