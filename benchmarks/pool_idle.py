# SPDX-License-Identifier: Apache-2.0
"""What a pool costs while nobody calls: processor time of the host and eight workers, and memory of a plain worker.

    python -m benchmarks.pool_idle [quick]

Every worker has answered a call before. The share is of one core, over the whole time, of all processes together.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from time import perf_counter_ns, sleep

import atoll
from benchmarks.memory import private_bytes, processor_nanoseconds
from benchmarks.percentiles import summarize

WORKERS = 8
SECONDS, QUICK_SECONDS = 20.0, 2.0


@atoll.function(workers=WORKERS)
def hold(seconds):
    import time

    time.sleep(seconds)


def main() -> int:
    hold.start()
    callers = [threading.Thread(target=hold, args=(0.5,)) for _ in range(WORKERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    workers = [worker.pid for worker in hold.status().workers]
    sleep(1.0)  # what the calls left to be done is done
    before = {pid: processor_nanoseconds(pid) for pid in [os.getpid(), *workers]}
    begin = perf_counter_ns()
    sleep(QUICK_SECONDS if "quick" in sys.argv else SECONDS)
    passed = perf_counter_ns() - begin
    used = {pid: processor_nanoseconds(pid) - since for pid, since in before.items()}
    private = summarize(private_bytes(pid) for pid in workers)
    calls = [worker.calls for worker in hold.status().workers]
    hold.close()
    print(
        json.dumps(
            {
                "workers": len(workers),
                "calls": calls,
                "seconds": passed / 1e9,
                "share": sum(used.values()) / passed,
                "share_of_host": used[os.getpid()] / passed,
                "private_bytes": asdict(private),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
