# SPDX-License-Identifier: Apache-2.0
"""What opening a ready environment costs, and whether it starts a process or opens a connection to do so.

Usage: ``python -m benchmarks.open_environment RUNS``; prints one JSON object, times in nanoseconds.

Processes and connections are counted by an audit hook, which sees what the interpreter itself is asked to do;
the hook is added after the timed runs, since it would slow them.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from time import perf_counter_ns
from typing import Any

from atoll.environments import environment_request, open_environment
from atoll.manifest import ServiceSpec, function_spec
from benchmarks.percentiles import summarize

PROCESS_EVENTS = (
    "subprocess.Popen",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "os.exec",
    "os.system",
    "os.spawn",
)
NETWORK_EVENTS = ("socket.connect", "socket.getaddrinfo")


def open_once(spec: ServiceSpec) -> int:
    """From the spec to an opened environment. Returns nanoseconds."""
    begin = perf_counter_ns()
    open_environment(environment_request(spec))
    return perf_counter_ns() - begin


def count_events(spec: ServiceSpec) -> Counter[str]:
    """Opens once more under an audit hook. Returns how often each kind of event happened."""
    seen: Counter[str] = Counter()

    def notice(event: str, _arguments: tuple[Any, ...]) -> None:
        if event in PROCESS_EVENTS or event in NETWORK_EVENTS:
            seen[event] += 1

    sys.addaudithook(notice)
    open_once(spec)
    return Counter(seen)


def measure(runs: int) -> dict[str, Any]:
    """Opens an environment that is made ready beforehand."""
    spec = function_spec("benchmark", dependencies=["numpy"])
    first = open_once(spec)
    taken = [open_once(spec) for _ in range(runs)]
    seen = count_events(spec)
    return {
        "runs": runs,
        "making_it_ready": first,
        "open": asdict(summarize(taken)),
        "processes": sum(seen[event] for event in PROCESS_EVENTS),
        "connections": sum(seen[event] for event in NETWORK_EVENTS),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
