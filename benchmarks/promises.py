# SPDX-License-Identifier: Apache-2.0
"""What was promised of a part of the measurements, and the figure that comes of it. Arithmetic only.

What always holds: the figures of a part that failed have no value, and its error as the detail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.figure import Figure

# What a part measured -> the value of the figure, and its detail.
Measured = Callable[[dict[str, Any]], tuple[float, str]]


@dataclass(frozen=True)
class Promise:
    """A figure to come.

    Attributes:
        target: None where nothing was promised.
        at_most: in which direction the target binds.
        needs: what a part's results hold only where the machine has it; without it there is no figure.
    """

    name: str
    unit: str
    target: float | None
    at_most: bool
    measured: Measured
    needs: str | None = None

    def figure(self, part: dict[str, Any]) -> Figure:
        """What the part measured for it."""
        if "error" in part:
            return Figure(self.name, self.unit, self.target, self.at_most, None, part["error"])
        value, detail = self.measured(part)
        return Figure(self.name, self.unit, self.target, self.at_most, value, detail)


def figures_of(promises: Mapping[str, Sequence[Promise]], parts: dict[str, dict[str, Any]]) -> list[Figure]:
    """A figure for every promise whose part was tried, in the promises' order."""
    return [
        promise.figure(parts[name])
        for name, of_part in promises.items()
        if name in parts
        for promise in of_part
        if promise.needs is None or promise.needs in parts[name] or "error" in parts[name]
    ]


def microseconds(summary: dict[str, Any]) -> str:
    """A summary of nanoseconds, in words."""
    return f"{summary['p50'] / 1e3:.2f} µs (p99 {summary['p99'] / 1e3:.2f})"


def milliseconds(summary: dict[str, Any]) -> str:
    """A summary of nanoseconds, in words."""
    return f"{summary['p50'] / 1e6:.2f} ms (p99 {summary['p99'] / 1e6:.2f})"
