# SPDX-License-Identifier: Apache-2.0
"""Percentiles of measured samples: taken from the sorted samples, never from buckets or a fitted curve.

Holds arithmetic only: no clocks, no processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest sample that at least ``percent`` % of all samples do not
    exceed.

    ``ordered`` is sorted ascending. The answer is always one of the samples, never a value between two.
    Raises ValueError for no samples or a percent outside 0..100.
    """
    if not ordered:
        raise ValueError("no samples, so no percentile")
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentile lies in 0..100, not {percent!r}")
    rank = math.ceil(Fraction(str(percent)) * len(ordered) / 100)  # exact: 99.9 % of 1000 is 999, in floats it is more
    return ordered[max(rank, 1) - 1]


@dataclass(frozen=True)
class Summary:
    """What a table shows of many samples. The unit is the unit of the samples."""

    count: int
    minimum: float
    p50: float
    p90: float
    p99: float
    p999: float
    maximum: float
    mean: float


def summarize(samples: Iterable[float]) -> Summary:
    """Sorts the samples and reads the summary off them. Raises ValueError when there are none."""
    ordered = sorted(samples)
    return Summary(
        count=len(ordered),
        minimum=percentile(ordered, 0),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        p999=percentile(ordered, 99.9),
        maximum=percentile(ordered, 100),
        mean=sum(ordered) / len(ordered),
    )
