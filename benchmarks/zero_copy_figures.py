# SPDX-License-Identifier: Apache-2.0
"""The figures of arrays: what was promised, and what the run measured. Arithmetic over the results of
``benchmarks.zero_copying`` only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.figure import Figure
from benchmarks.promises import Measured, Promise, figures_of, microseconds, milliseconds

MEGABYTE = 1_000_000
SECOND = 1_000_000_000


def _over(ours: str, base: str, words: Callable[[dict[str, Any]], str] = milliseconds, inside: str = "") -> Measured:
    """The p50 of the one over that of the other."""

    def measured(part: dict[str, Any]) -> tuple[float, str]:
        samples = part[inside] if inside else part
        ratio = samples[ours]["p50"] / samples[base]["p50"]
        return ratio, f"{words(samples[ours])} / {words(samples[base])}"

    return measured


def _in_place(part: dict[str, Any]) -> tuple[float, str]:
    small = part["small"]["p50"]
    ratios = {name: samples["p50"] / small for name, samples in part.items() if name.startswith(("made", "passed on"))}
    words = [f"{_with_size(name)}: {ratio:.2f}" for name, ratio in ratios.items()]
    return max(ratios.values()), f"the worst of {'; '.join(words)}; small call {microseconds(part['small'])}"


def _given_back(part: dict[str, Any]) -> tuple[float, str]:
    name = next(name for name in part if name.startswith("given back"))
    return part[name]["p50"] / part["small"]["p50"], f"{_with_size(name)}: {milliseconds(part[name])}"


def _with_size(name: str) -> str:
    words, _, size = name.rpartition(" ")
    return f"{words}, {readable_size(int(size))}"


def readable_size(nbytes: int) -> str:
    """A size with the largest unit of which it has at least one."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes} B"


def quicker_beside(ways: dict[str, dict[str, Any]]) -> int | None:
    """From which size on bytes beside the payload are quicker, at it and at all larger ones; None if never."""
    found = None
    for size in sorted(ways["beside"], key=int, reverse=True):
        if ways["beside"][size]["p50"] >= ways["inline"][size]["p50"]:
            break
        found = int(size)
    return found


def _threshold(part: dict[str, Any]) -> tuple[float, str]:
    worst = 1.0
    for kind, ways in part["kinds"].items():
        threshold = part["thresholds"][kind.split()[0]]
        for size, beside in ways["beside"].items():
            inline = ways["inline"][size]["p50"]
            chosen = inline if int(size) < threshold else beside["p50"]
            worst = max(worst, chosen / min(inline, beside["p50"]))
    starts = {kind: quicker_beside(ways) for kind, ways in part["kinds"].items()}
    words = [f"{kind} {'never' if size is None else f'{size:,}'}" for kind, size in starts.items()]
    return worst, f"{readable_thresholds(part)}; it is quicker from: {', '.join(words)}"


def readable_thresholds(part: dict[str, Any]) -> str:
    """From which sizes on what goes beside the payload."""
    return "beside the payload from: " + ", ".join(f"{kind} {size:,}" for kind, size in part["thresholds"].items())


def _segments(part: dict[str, Any]) -> tuple[float, str]:
    opened = ", ".join(f"{name} {count}" for name, count in part["opened"].items())
    said = "" if part["segments"] is None else f"; atoll.memory() of the host: {part['segments']}"
    return part["segments_in_all"], f"after {part['calls']:,} calls; open in {opened}{said}"


def _growth(part: dict[str, Any]) -> tuple[float, str]:
    detail = ", ".join(f"{name} {grown / MEGABYTE:+.2f} MB" for name, grown in part["growth"].items())
    return max(part["growth"].values()) / MEGABYTE, f"resident, own and shared: {detail}"


def _frames(way: str, base: str) -> Measured:
    def measured(part: dict[str, Any]) -> tuple[float, str]:
        ours, reference = part[way], part[base]
        detail = f"{SECOND / ours['p50']:,.0f} of {SECOND / reference['p50']:,.0f} frames/s; {milliseconds(ours)} each"
        return reference["p50"] / ours["p50"], detail

    return measured


PROMISES: dict[str, tuple[Promise, ...]] = {
    "argument": (
        Promise(
            "Array of 100 MB as an argument, over a warm memcpy",
            "x",
            1.15,
            True,
            _over("atoll", "copy", inside="nanoseconds"),
        ),
        Promise(
            "Array of 100 MB as an argument, all of it read, over memcpy and reading here",
            "x",
            1.15,
            True,
            _over("atoll_largest", "copy_and_largest", inside="nanoseconds"),
        ),
    ),
    "result": (
        Promise(
            "Array of 100 MB as a result, over a warm memcpy",
            "x",
            1.15,
            True,
            _over("atoll", "copy", inside="nanoseconds"),
        ),
        Promise(
            "Array of 100 MB as a result, all of it read, over memcpy and reading here",
            "x",
            1.15,
            True,
            _over("atoll_largest", "copy_and_largest", inside="nanoseconds"),
        ),
    ),
    "place": (
        Promise("Array in a segment, any size, over a small call", "x", 4.0, True, _in_place),
        Promise("Result given back to the worker it came from, over a small call", "x", None, True, _given_back),
    ),
    "small": (
        Promise(
            "Array of 1 KB as an argument, over a small call", "x", 1.5, True, _over("argument", "small", microseconds)
        ),
        Promise(
            "Array of 1 KB as a result, over a small call", "x", None, True, _over("result", "small", microseconds)
        ),
    ),
    "threshold": (
        Promise("In the payload or beside it: the way chosen over the better, at worst", "x", None, True, _threshold),
    ),
    "many": (
        Promise("Segments after calls with 10 MB in and 10 MB out", "segments", 3.0, True, _segments),
        Promise("Memory that these calls leave behind", "MB", 1.0, True, _growth),
        Promise(
            "Call with 10 MB in and 10 MB out, over two warm memcpys", "x", None, True, _over("call", "two_copies")
        ),
    ),
    "frames": (
        Promise(
            "4K frames through two services, of what two memcpys allow", "x", 0.8, False, _frames("calls", "two_copies")
        ),
        Promise(
            "4K frames through two services, computed in between, of what that and two memcpys allow",
            "x",
            None,
            False,
            _frames("computed", "two_copies_and_inversion"),
        ),
        Promise(
            "4K frames as a stream through two services, of what two memcpys allow",
            "x",
            0.8,
            False,
            _frames("stream", "two_copies"),
        ),
    ),
    "table": (
        Promise("Arrow table of 100 MB as an argument, over a warm memcpy", "x", None, True, _over("atoll", "copy")),
    ),
    "tensor": (
        Promise("torch tensor of 25 MB as an argument, over a warm memcpy", "x", None, True, _over("atoll", "copy")),
    ),
}


def zero_copy_figures(parts: dict[str, dict[str, Any]]) -> list[Figure]:
    """A figure for every promise whose part was tried."""
    return figures_of(PROMISES, parts)
