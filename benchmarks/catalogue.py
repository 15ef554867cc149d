# SPDX-License-Identifier: Apache-2.0
"""Which contenders there are, under which names, and with which settings each is started.

Holds a table only. ``floor`` stands for the C program; every other peer is a module of ``benchmarks.peers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FLOOR = "floor"
ATOLL = "atoll"


@dataclass(frozen=True)
class Entry:
    """One contender: what a table shows, the peer's module, where it runs, and variables set before it
    starts.
    """

    name: str
    title: str
    peer: str
    placement: str = "scheduler"
    environment: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    optional: bool = False


_ENTRIES = (
    Entry("floor", "C ping-pong, one core (the floor)", FLOOR, "one-core"),
    Entry("floor-scheduler", "C ping-pong, scheduler's choice", FLOOR),
    Entry("floor-two-cores", "C ping-pong, two cores", FLOOR, "two-cores"),
    Entry("atoll", "atoll", "atoll_sync", requirements=(ATOLL,)),
    Entry("atoll-one-core", "atoll, both ends on one core", "atoll_sync", "one-core", requirements=(ATOLL,)),
    Entry("atoll-two-cores", "atoll, two cores, pinned", "atoll_sync", "two-cores", requirements=(ATOLL,)),
    Entry("atoll-async", "atoll, asyncio", "atoll_async", requirements=(ATOLL,)),
    Entry(
        "atoll-lane-off",
        "atoll, socket alone",
        "atoll_sync",
        environment={"ATOLL_LANE": "0"},
        requirements=(ATOLL,),
    ),
    Entry(
        "atoll-lane-off-one-core",
        "atoll, socket alone, one core",
        "atoll_sync",
        "one-core",
        environment={"ATOLL_LANE": "0"},
        requirements=(ATOLL,),
    ),
    Entry(
        "atoll-spin-off",
        "atoll, no lane, no spinning",
        "atoll_sync",
        environment={"ATOLL_SPIN": "0"},
        requirements=(ATOLL,),
    ),
    Entry("pipe", "multiprocessing.Pipe", "pipe"),
    Entry("pipe-one-core", "multiprocessing.Pipe, one core", "pipe", "one-core"),
    Entry("process-pool", "ProcessPoolExecutor", "process_pool"),
    Entry("loky", "loky", "loky", requirements=("loky",)),
    Entry("execnet", "execnet", "execnet", requirements=("execnet",)),
    Entry("pyzmq", "pyzmq REQ/REP", "pyzmq", requirements=("pyzmq",)),
    Entry("grpcio", "grpcio", "grpcio", requirements=("grpcio",)),
    Entry("rpyc", "rpyc", "rpyc", requirements=("rpyc",)),
    Entry("pyisolate", "pyisolate", "pyisolate", requirements=("pyisolate",)),
    Entry("ray", "Ray actor", "ray", requirements=("ray",), optional=True),
)

CATALOGUE: Mapping[str, Entry] = {entry.name: entry for entry in _ENTRIES}
