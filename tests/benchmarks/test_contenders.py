# SPDX-License-Identifier: Apache-2.0
"""The floor and one peer, in tiny counts: samples come back, errors are named, and no process is left."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks.catalogue import CATALOGUE
from benchmarks.comparison import Effort, compare
from benchmarks.contender import Contender, ContenderError
from benchmarks.family import descendants
from benchmarks.placement import processors
from benchmarks.starting import start

PYTHON = Path(sys.executable)
TINY = Effort(
    rounds=3, starts=2, warm_up=5, smallest_batch=10, largest_batch=20, batch_nanoseconds=100_000, idle_seconds=0.05
)


def ended(pid: int) -> bool:
    """Whether the process is gone, or only waits for an adoptive parent to take its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("name", ["floor", "floor-scheduler", "pipe", "pipe-one-core"])
def test_a_batch_has_one_positive_sample_for_each_call(name):
    contender = start(CATALOGUE[name], PYTHON)
    try:
        for count in (1, 25):
            samples = contender.run(count)
            assert len(samples) == count
            assert all(sample > 0 for sample in samples)
        far_side = descendants(contender.pid)
        assert far_side
    finally:
        contender.close()
    assert all(ended(pid) for pid in [contender.pid, *far_side])


@pytest.mark.skipif(len(processors()) < 2, reason="needs two processors")
def test_two_cores_pin_each_side_to_its_own():
    contender = start(CATALOGUE["pipe"], PYTHON)
    contender.close()
    pinned = Contender(PYTHON, "pipe", placement="two-cores")
    try:
        masks = [
            Path(f"/proc/{pid}/status").read_text().partition("Cpus_allowed_list:")[2].split()[0]
            for pid in (pinned.pid, *descendants(pinned.pid))
        ]
    finally:
        pinned.close()
    assert masks[0] == str(processors()[0])
    assert str(processors()[1]) in masks[1:]


def test_a_comparison_pools_the_rounds_and_names_who_is_left_out():
    entries = [CATALOGUE["floor"], CATALOGUE["pipe"], CATALOGUE["ray"]]
    comparison = compare(entries, PYTHON, TINY, progress=lambda message: None)
    assert list(comparison.measured) == ["floor", "pipe"]
    assert "No module named 'ray'" in comparison.left_out["ray"]
    for one in comparison.measured.values():
        assert one["nanoseconds"]["count"] == TINY.rounds * one["batch"]
        assert len(one["p50_of_starts"]) == TINY.starts
        assert 0 < one["nanoseconds"]["minimum"] <= one["nanoseconds"]["p50"] <= one["nanoseconds"]["p99"]


def test_rounds_are_shared_out_among_the_starts():
    assert Effort(rounds=7, starts=3).rounds_of_starts() == [3, 2, 2]
    assert Effort(rounds=2, starts=5).rounds_of_starts() == [1, 1]


def test_a_peer_that_does_not_exist_is_an_error_with_its_own_words():
    with pytest.raises(ContenderError, match=r"No module named 'benchmarks\.peers\.nobody'"):
        Contender(PYTHON, "nobody")
