# SPDX-License-Identifier: Apache-2.0
"""What opening a ready environment costs, and whether it starts a process or opens a connection to do so.

Usage: ``python -m benchmarks.open_environment time|count``; prints one JSON object.

``time`` opens the environment once and prints the nanoseconds; it is run in a fresh process for every sample, since
what a process opened before it may remember. ``count`` opens it once under an audit hook, which would slow the other,
and prints how many processes and connections the interpreter was asked for.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from time import perf_counter_ns
from typing import Any

from atoll.environments import environment_request, open_environment
from atoll.manifest import ServiceSpec, function_spec

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
    """Opens once under an audit hook. Returns how often each kind of event happened."""
    seen: Counter[str] = Counter()

    def notice(event: str, _arguments: tuple[Any, ...]) -> None:
        if event in PROCESS_EVENTS or event in NETWORK_EVENTS:
            seen[event] += 1

    sys.addaudithook(notice)
    open_once(spec)
    return Counter(seen)


def measure(what: str) -> dict[str, Any]:
    """One opening in this process. The first one ever makes the environment ready, which is no sample."""
    spec = function_spec("benchmark", dependencies=["numpy"])
    if what == "time":
        return {"nanoseconds": open_once(spec)}
    seen = count_events(spec)
    return {
        "processes": sum(seen[event] for event in PROCESS_EVENTS),
        "connections": sum(seen[event] for event in NETWORK_EVENTS),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
