# SPDX-License-Identifier: Apache-2.0
"""What the pool itself costs on a small call: the call as users make it, beside the bare exchange with the same worker.

    python -m benchmarks.pool_call [quick]

A sample is one call, in nanoseconds. Bare: arguments encoded, one exchange over the worker's connection, result
decoded; no turn, no supervision, no metrics. Both go over the same connection to the same process, in batches that take
turns, so that neither has the better luck with memory or cores. Every reply is checked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter_ns
from typing import Any

import atoll
from atoll_worker import wire
from benchmarks.percentiles import summarize
from benchmarks.workload import LABEL, THRESHOLD, check

ROUNDS, BATCH = 120, 1000
QUICK_ROUNDS = 10


@atoll.function
def detect(image_id, *, threshold=0.5, label="cat"):
    return {"id": image_id, "label": label, "score": threshold}


def bare_call() -> Callable[..., Any]:
    """A function that calls ``detect`` in the pool's worker, past the pool."""
    channel = detect._pool.dispatcher.idle[-1]
    encoder, decoder, connection = channel.encoder, channel.decoder, channel.connection

    def call(image_id: int, **options: Any) -> Any:
        payload = encoder.encode(("detect", (image_id,), options))
        buffers = encoder.take_buffers() if encoder.has_buffers else ()
        kind, _, result, buffers = connection.exchange(wire.PICKLE, payload, buffers, None, False)
        if kind != wire.RESULT:
            raise RuntimeError("the worker raised")
        return decoder.decode(result, buffers)

    return call


def batch(call: Callable[..., Any], taken: list[int]) -> None:
    for image_id in range(BATCH):
        begin = perf_counter_ns()
        reply = call(image_id, threshold=THRESHOLD, label=LABEL)
        taken.append(perf_counter_ns() - begin)
        check(image_id, reply)


def main() -> int:
    rounds = QUICK_ROUNDS if "quick" in sys.argv else ROUNDS
    detect(0)
    bare = bare_call()
    taken: dict[str, list[int]] = {"pool": [], "bare": []}
    batch(detect, [])
    batch(bare, [])
    ratios = []
    for number in range(rounds):
        order = [("pool", detect), ("bare", bare)]
        for name, call in order if number % 2 else reversed(order):
            batch(call, taken[name])
        ratios.append(summarize(taken["pool"][-BATCH:]).p50 / summarize(taken["bare"][-BATCH:]).p50)
    detect.close()
    result = {name: asdict(summarize(samples)) for name, samples in taken.items()}
    print(json.dumps({**result, "ratio_of_rounds": asdict(summarize(ratios))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
