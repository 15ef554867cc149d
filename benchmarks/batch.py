# SPDX-License-Identifier: Apache-2.0
"""One batch of calls, each timed alone: ``perf_counter_ns`` before and after, nothing subtracted.

What always holds: a reply is checked outside of the timed part; the collector stays on, as users have it; one
wrong reply or exception ends the batch, so that errors never become samples.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import Any

from benchmarks.workload import LABEL, THRESHOLD, check


def run_batch(call: Callable[..., Any], count: int) -> array[int]:
    """Makes ``count`` blocking calls. Returns the nanoseconds of each, in order."""
    samples = array("q", bytes(8 * count))
    for number in range(count):
        begin = perf_counter_ns()
        reply = call(number, threshold=THRESHOLD, label=LABEL)
        end = perf_counter_ns()
        samples[number] = end - begin
        check(number, reply)
    return samples


async def run_batch_async(call: Callable[..., Awaitable[Any]], count: int) -> array[int]:
    """The same for an awaited call, on the running event loop, one after the other."""
    samples = array("q", bytes(8 * count))
    for number in range(count):
        begin = perf_counter_ns()
        reply = await call(number, threshold=THRESHOLD, label=LABEL)
        end = perf_counter_ns()
        samples[number] = end - begin
        check(number, reply)
    return samples
