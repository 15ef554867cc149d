# SPDX-License-Identifier: Apache-2.0
"""An array of 100 MB as an argument, beside a warm ``numpy.copyto`` of the same bytes, and beside other ways.

    python -m benchmarks.zero_copy_argument [quick]

A sample is one call, in nanoseconds, in the steady state: the same array, whose last byte is another each time. Two
functions: ``look`` touches next to nothing, so the reference is the copy alone; ``largest`` reads everything, so the
reference is the copy, and the same maximum of it, in this process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import atoll
from benchmarks import array_service
from benchmarks.array_peers import QUICK_PEERS, ArrayPeer, opened_array_peers
from benchmarks.copying import copying, marks, random_bytes
from benchmarks.percentiles import summarize
from benchmarks.turns import Contender, take_turns, timed

NBYTES = 100_000_000
ROUNDS, QUICK_ROUNDS = 80, 6
SERVICE = Path(array_service.__file__)


def looking(look: Callable[[Any], Any], array: Any) -> Contender:
    """Calls that touch next to nothing."""

    def contend() -> list[int]:
        array[-1] = mark = next(marks)
        taken, answer = timed(lambda: look(array))
        if answer != (NBYTES, 7, mark):
            raise RuntimeError(f"{answer} instead of {(NBYTES, 7, mark)}")
        return [taken]

    return contend


def finding(largest: Callable[[Any], Any], array: Any) -> Contender:
    """Calls that read everything."""

    def contend() -> list[int]:
        array[-1] = mark = next(marks)
        taken, answer = timed(lambda: largest(array))
        if answer != mark:
            raise RuntimeError(f"{answer} instead of {mark}")
        return [taken]

    return contend


def contenders_of(peers: dict[str, ArrayPeer], service: Any, array: Any) -> dict[str, Contender]:
    """All that take turns: each function by atoll and by every peer, and its reference."""
    copy = array.copy()
    contenders = {
        "copy": copying(array, copy),
        "copy_and_largest": copying(array, copy, array_service.largest),
        "atoll": looking(service.look, array),
        "atoll_largest": finding(service.largest, array),
    }
    for name, peer in peers.items():
        contenders[name] = looking(lambda data, peer=peer: peer.argument(array_service.look, data), array)  # type: ignore[misc]
    for name in QUICK_PEERS:
        if name in peers:
            contenders[f"{name}_largest"] = finding(
                lambda data, peer=peers[name]: peer.argument(array_service.largest, data),  # type: ignore[misc]
                array,
            )
    return contenders


def main() -> int:
    rounds = QUICK_ROUNDS if "quick" in sys.argv else ROUNDS
    left_out: dict[str, str] = {}
    with opened_array_peers(NBYTES, left_out) as peers, atoll.Service(SERVICE) as service:
        array = random_bytes(NBYTES)
        contenders = contenders_of(peers, service, array)
        taken = take_turns(contenders, rounds, [name for name in peers if name not in QUICK_PEERS], 16)
    atoll.shutdown()
    result: dict[str, Any] = {name: asdict(summarize(samples)) for name, samples in taken.items()}
    print(json.dumps({"nbytes": NBYTES, "nanoseconds": result, "left_out": left_out}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
