# SPDX-License-Identifier: Apache-2.0
"""An array of 100 MB as a result, beside a warm ``numpy.copyto`` of the same bytes, and beside other ways.

    python -m benchmarks.zero_copy_result [quick]

A sample is one call, in nanoseconds, in the steady state: the worker returns an array of its own, the last byte of
which is another each time; it is looked at, and let go of before the next call. Also one that the caller may write to
(``writable``), one that the worker writes into the caller's own segment (``out``), and one of which the caller reads
everything, with its reference.
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


def getting(give: Callable[[int, int], Any]) -> Contender:
    """Calls whose result is looked at only."""

    def contend() -> list[int]:
        mark = next(marks)
        taken, array = timed(lambda: give(NBYTES, mark))
        if (len(array), array[0], array[-1]) != (NBYTES, 1, mark):
            raise RuntimeError(f"{array} instead of {NBYTES} bytes that end with {mark}")
        return [taken]

    return contend


def reading(give: Callable[[int, int], Any]) -> Contender:
    """Calls whose result is read."""

    def contend() -> list[int]:
        mark = next(marks)
        taken, found = timed(lambda: array_service.largest(give(NBYTES, mark)))
        if found != mark:
            raise RuntimeError(f"{found} instead of {mark}")
        return [taken]

    return contend


def filling(fill: Callable[..., Any], out: Any) -> Contender:
    """Calls that write into an array of the caller's."""

    def contend() -> list[int]:
        mark = next(marks)
        taken, _ = timed(lambda: fill(NBYTES, mark, out=out))
        if (out[0], out[-1]) != (1, mark):
            raise RuntimeError(f"{out} does not end with {mark}")
        return [taken]

    return contend


def contenders_of(peers: dict[str, ArrayPeer], service: Any) -> dict[str, Contender]:
    """All that take turns."""
    array = random_bytes(NBYTES)
    copy = array.copy()
    contenders = {
        "copy": copying(array, copy),
        "copy_and_largest": copying(array, copy, array_service.largest),
        "atoll": getting(service.give),
        "atoll_largest": reading(service.give),
        "writable": getting(service.give.options(writable=True)),
        "out": filling(service.fill, atoll.empty(NBYTES, "uint8")),
    }
    for name, peer in peers.items():
        contenders[name] = getting(peer.result)
    for name in QUICK_PEERS:
        if name in peers:
            contenders[f"{name}_largest"] = reading(peers[name].result)
    return contenders


def main() -> int:
    rounds = QUICK_ROUNDS if "quick" in sys.argv else ROUNDS
    left_out: dict[str, str] = {}
    with opened_array_peers(NBYTES, left_out) as peers, atoll.Service(SERVICE) as service:
        contenders = contenders_of(peers, service)
        taken = take_turns(contenders, rounds, [name for name in peers if name not in QUICK_PEERS], 16)
        del contenders
    atoll.shutdown()
    result: dict[str, Any] = {name: asdict(summarize(samples)) for name, samples in taken.items()}
    print(json.dumps({"nbytes": NBYTES, "nanoseconds": result, "left_out": left_out}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
