# SPDX-License-Identifier: Apache-2.0
"""How much processor time a contender uses while nobody calls it: one that polls disturbs all the others.

Linux only, read from /proc; elsewhere everyone counts as idle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.placement import descendants


def processor_seconds(pid: int) -> float:
    """The processor time that the process and its living descendants have used so far, in seconds."""
    ticks = 0
    for process in (pid, *descendants(pid)):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def idle_loads(pids: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Waits ``seconds`` without calling anyone. Returns each contender's load: 1.0 is one processor kept
    busy.
    """
    before = {name: processor_seconds(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    return {name: (processor_seconds(pid) - before[name]) / seconds for name, pid in pids.items()}
