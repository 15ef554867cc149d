# SPDX-License-Identifier: Apache-2.0
"""Percentiles are samples, found by rank in the sorted samples."""

from __future__ import annotations

import random

import pytest
from benchmarks.percentiles import percentile, summarize


def test_the_percentile_is_the_nearest_rank():
    ordered = [15, 20, 35, 40, 50]
    assert [percentile(ordered, percent) for percent in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]


def test_the_ends_are_the_smallest_and_the_largest_sample():
    assert (percentile([3, 4, 9], 0), percentile([3, 4, 9], 100)) == (3, 9)


def test_one_sample_is_every_percentile():
    assert {percentile([7], percent) for percent in (0, 1, 50, 99.9, 100)} == {7}


def test_at_least_that_share_of_the_samples_is_not_above_the_percentile():
    ordered = sorted(random.Random(1).choices(range(1000), k=777))
    for percent in (1, 10, 50, 90, 99, 99.9):
        found = percentile(ordered, percent)
        assert found in ordered
        assert sum(sample <= found for sample in ordered) >= percent / 100 * len(ordered)
        assert sum(sample < found for sample in ordered) < percent / 100 * len(ordered)


def test_a_summary_sorts_for_itself():
    summary = summarize(reversed(range(1, 1001)))
    assert (summary.count, summary.minimum, summary.maximum, summary.mean) == (1000, 1, 1000, 500.5)
    assert (summary.p50, summary.p90, summary.p99, summary.p999) == (500, 900, 990, 999)


@pytest.mark.parametrize("percent", [-1, 100.1])
def test_a_percent_outside_of_the_range_is_refused(percent):
    with pytest.raises(ValueError, match=r"0\.\.100"):
        percentile([1], percent)


def test_no_samples_have_no_percentile():
    with pytest.raises(ValueError, match="no samples"):
        summarize([])
