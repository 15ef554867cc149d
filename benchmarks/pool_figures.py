# SPDX-License-Identifier: Apache-2.0
"""The figures of a pool: what was promised, and what the run measured. Arithmetic over the results of
``benchmarks.pooling`` only.

What always holds: as in ``figures``; the figures of a part that failed have no value, and its error as the detail.
"""

from __future__ import annotations

from typing import Any

from benchmarks.figure import Figure
from benchmarks.promises import Measured, Promise, figures_of, microseconds

MEGABYTE = 1_000_000
MILLISECOND = 1_000_000


def _call(part: dict[str, Any]) -> tuple[float, str]:
    ratio = part["pool"]["p50"] / part["bare"]["p50"]
    return ratio, f"{microseconds(part['pool'])} / {microseconds(part['bare'])}"


def _map(part: dict[str, Any]) -> tuple[float, str]:
    speed = part["atoll"]["p50"]
    return speed, f"unordered {part['unordered']['p50']:,.0f}; the builtin map, here, {part['local']['p50']:,.0f}"


def _map_ratio(part: dict[str, Any]) -> tuple[float, str]:
    ours, theirs = part["atoll"]["p50"], part["process_pool"]["p50"]
    return (
        ours / theirs,
        f"{ours:,.0f} / {theirs:,.0f} items/s, at chunks of {part['chunk']:,}, the best of those tried",
    )


def _callers(part: dict[str, Any]) -> tuple[float, str]:
    call = part["call"]
    return call["p99"] / call["p50"], f"p50 {call['p50'] / 1e3:.1f} µs, {part['calls_per_second']:,.0f} calls/s in all"


def _share(part: dict[str, Any]) -> tuple[float, str]:
    return part["share"]["maximum"], f"in half of the rounds at most {part['share']['p50']:.2f}"


def _stream(name: str) -> Measured:
    return lambda part: (part[name]["p50"], f"slowest {part[name]['minimum']:,.0f}")


def _stream_memory(part: dict[str, Any]) -> tuple[float, str]:
    growth = part["growth"]
    detail = ", ".join(f"{name.replace('_', ' ')} {grown / MEGABYTE:+.2f} MB" for name, grown in growth.items())
    return max(growth.values()) / MEGABYTE, f"over {part['out']['count']} streams each way: {detail}"


def _callback(part: dict[str, Any]) -> tuple[float, str]:
    ratio = part["callback"]["p50"] / part["call"]["p50"]
    return ratio, f"{microseconds(part['callback'])} / {microseconds(part['call'])}"


def _idle(part: dict[str, Any]) -> tuple[float, str]:
    return 100 * part["share"], f"{part['seconds']:.0f} s; the host alone {100 * part['share_of_host']:.3f} %"


def _private(part: dict[str, Any]) -> tuple[float, str]:
    return part["private_bytes"]["maximum"] / MEGABYTE, f"the largest of {part['workers']}"


def _replacement(module: str) -> Measured:
    def measured(part: dict[str, Any]) -> tuple[float, str]:
        forked, started = part[module]["forked"], part[module]["started"]
        return forked["p50"] / MILLISECOND, f"p99 {forked['p99'] / MILLISECOND:.1f} ms; without preloading " + (
            f"{started['p50'] / MILLISECOND:.1f} ms (p99 {started['p99'] / MILLISECOND:.1f})"
        )

    return measured


PROMISES: dict[str, tuple[Promise, ...]] = {
    "call": (Promise("Small call in a pool of one worker, over the bare exchange", "x", 1.15, True, _call),),
    "map": (
        Promise("map of 200,000 tiny items, 2 workers", "items/s", 400_000.0, False, _map),
        Promise(
            "map of 200,000 tiny items, times faster than ProcessPoolExecutor at its best", "x", 20.0, False, _map_ratio
        ),
    ),
    "callers": (
        Promise("Single calls, 8 threads, 2 workers: p99 over p50", "x", 20.0, True, _callers),
        Promise("Single calls, 8 threads, 2 workers: longest mean wait over the fair share", "x", 3.0, True, _share),
    ),
    "stream": (
        Promise("Stream of 100,000 small items out of a worker", "items/s", 200_000.0, False, _stream("out")),
        Promise("Stream of 100,000 small items into a worker", "items/s", None, False, _stream("into")),
        Promise("Memory that streams leave behind", "MB", 1.0, True, _stream_memory),
    ),
    "callback": (Promise("Callback round trip, over the small call", "x", None, True, _callback),),
    "idle": (
        Promise("Idle pool of 8 workers, of one core", "%", 0.5, True, _idle),
        Promise("Private memory of a plain worker", "MB", 15.0, True, _private),
    ),
    "replacement": (
        Promise(
            "Replacing a killed worker, numpy preloaded, until it answered", "ms", 50.0, True, _replacement("numpy")
        ),
        Promise(
            "Replacing a killed worker, torch preloaded, until it answered",
            "ms",
            50.0,
            True,
            _replacement("torch"),
            needs="torch",
        ),
    ),
}


def pool_figures(parts: dict[str, dict[str, Any]]) -> list[Figure]:
    """A figure for every promise whose part was tried."""
    return figures_of(PROMISES, parts)
