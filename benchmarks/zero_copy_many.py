# SPDX-License-Identifier: Apache-2.0
"""What a thousand calls leave behind, each with 10 MB in and another 10 MB out, and what one takes.

    python -m benchmarks.zero_copy_many [quick]

Counted at the end, before anything is closed: segments, as ``atoll.memory()`` says, and as the kernel does: shared
memory of at least 1 MB that the two processes have open. Memory is what is resident in each process, its own and
shared; its growth is from the fiftieth call, when what is kept for good is there, to the last.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import atoll
from benchmarks import array_service
from benchmarks.copying import copying, marks, random_bytes
from benchmarks.memory import resident_bytes, shared_memories
from benchmarks.percentiles import summarize
from benchmarks.turns import timed

NBYTES, LARGE = 10_000_000, 1_000_000
CALLS, QUICK_CALLS, SETTLED = 1000, 150, 50
SERVICE = Path(array_service.__file__)


def call(service: atoll.Service, array: Any) -> int:
    """One of the calls. Returns nanoseconds."""
    array[-1] = mark = next(marks)
    taken, answer = timed(lambda: service.exchange(array))
    if (len(answer), answer[0], answer[-1]) != (NBYTES, 1, mark):
        raise RuntimeError(f"{answer} instead of {NBYTES} bytes that end with {mark}")
    return taken


def main() -> int:
    calls = QUICK_CALLS if "quick" in sys.argv else CALLS
    with atoll.Service(SERVICE) as service:
        array = random_bytes(NBYTES)
        copies = copying(array, array.copy(), times=2)
        pids = {"host": os.getpid(), "worker": service.pid or 0}
        samples, reference = [], []
        for number in range(calls):
            samples.append(call(service, array))
            reference += copies()
            if number == SETTLED:
                before = {name: resident_bytes(pid) for name, pid in pids.items()}
        growth = {name: resident_bytes(pid) - before[name] for name, pid in pids.items()}
        memory = atoll.memory() if hasattr(atoll, "memory") else None
        opened = {name: sorted(shared_memories(pid, LARGE)) for name, pid in pids.items()}
    atoll.shutdown()
    result = {
        "calls": calls,
        "call": asdict(summarize(samples)),
        "two_copies": asdict(summarize(reference)),
        "growth": growth,
        "segments": memory.segments if memory is not None else None,
        "opened": {name: len(found) for name, found in opened.items()},
        "segments_in_all": len({one for found in opened.values() for one in found}),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
