# SPDX-License-Identifier: Apache-2.0
"""A figure is met by its own direction, never without a value; the report stays between its markers."""

from __future__ import annotations

import pytest
from benchmarks.figures import Figure, collect_figures
from benchmarks.pool_figures import PROMISES
from benchmarks.report import BEGIN, END, NEW_PAGE, MarkersMissing, insert, render
from benchmarks.zero_copy_figures import PROMISES as ARRAY_PROMISES
from benchmarks.zero_copy_figures import quicker_beside


def contender(title: str, p50: float) -> dict:
    return {
        "title": title,
        "description": {"version": "1.2"},
        "idle_load": 0.0,
        "p50_of_starts": [p50],
        "nanoseconds": {"p50": p50, "p99": 2 * p50, "count": 1000},
    }


@pytest.fixture
def results() -> dict:
    results = {
        "contenders": {
            "floor": contender("the floor", 10_000.0),
            "atoll": contender("atoll", 4_000.0),
            "grpcio": contender("grpcio", 200_000.0),
        },
        "left_out": {"execnet": "ImportError: no module\nnamed | execnet"},
        "startup": {"open_environment": {"error": "broken"}},
        "options": {"rounds": 3, "starts": 1, "quick": False},
        "date": "2026-01-02",
        "commit": None,
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "usable_cores": 2,
            "virtual_machine": True,
            "memory_gib": 4.0,
            "governor": "performance",
            "system": "Linux",
            "kernel": "6",
            "libc": "glibc",
            "python": "Python 3",
            "compiler": "cc",
            "load_average": [0.0, 0.0, 0.0],
        },
    }
    results["figures"] = [{**vars(figure), "met": figure.met} for figure in collect_figures(results)]
    return results


def test_targets_bind_in_their_direction(results):
    met = {figure.name: (figure.value, figure.met) for figure in collect_figures(results)}
    assert met["Small call, sync, p50 over the C floor"] == (0.4, True)
    assert met["Small call, times faster than grpcio"] == (50.0, False)


def test_without_a_value_nothing_is_met(results):
    met = {figure.name: (figure.value, figure.met) for figure in collect_figures(results)}
    assert met["Small call, times faster than execnet"] == (None, False)
    assert met["Opening a ready environment, without a process"] == (None, False)


def test_what_was_not_tried_is_not_shown(results):
    assert not [figure for figure in collect_figures(results) if "rpyc" in figure.name]


def test_without_a_target_there_is_nothing_to_meet():
    assert Figure("shown", "x", None, True, 3.0).met is None


def test_the_report_names_figures_errors_and_machine(results):
    page = render(results, "picture.png")
    for expected in (
        "0.40 x",
        "≤ 0.5 x",
        "**no**",
        "no module named | execnet",
        "a processor",
        "(picture.png)",
    ):
        assert expected in page


def test_only_what_lies_between_the_markers_changes(results):
    page = f"before\n{BEGIN}\nold figures\n{END}\nafter\n"
    changed = insert(page, "new figures\n")
    assert changed == f"before\n{BEGIN}\nnew figures\n{END}\nafter\n"
    assert insert(changed, "new figures\n") == changed
    assert "new figures" in insert(NEW_PAGE, "new figures\n")


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}{BEGIN}"])
def test_a_page_without_markers_is_refused(page):
    with pytest.raises(MarkersMissing):
        insert(page, "figures")


def summary(p50: float, **others: float) -> dict:
    return {"p50": p50, "p99": 2 * p50, "minimum": p50, "maximum": p50, "count": 10, **others}


POOL = {
    "call": {"pool": summary(11_000.0), "bare": summary(10_000.0)},
    "map": {
        "atoll": summary(3e6),
        "unordered": summary(3e6),
        "process_pool": summary(1e6),
        "local": summary(1e7),
        "chunk": 1000,
    },
    "callers": {"call": summary(50_000.0), "share": summary(1.2, maximum=3.5), "calls_per_second": 20_000.0},
    "stream": {"out": summary(1e6), "into": summary(1e6), "growth": {"host": 100_000, "worker_out": 2_000_000}},
    "callback": {"callback": summary(9_000.0), "call": summary(10_000.0)},
    "idle": {"share": 0.004, "share_of_host": 0.001, "seconds": 20.0, "workers": 8, "private_bytes": summary(6e6)},
    "replacement": {
        "numpy": {"forked": summary(1e7), "started": summary(3e8)},
        "torch": {"forked": summary(6e7), "started": summary(2e9)},
    },
}


def test_figures_of_a_pool(results):
    results["pool"] = POOL
    found = {figure.name: figure for figure in collect_figures(results)}
    met = {name: figure.met for name, figure in found.items() if figure not in collect_figures({**results, "pool": {}})}
    assert len(met) == sum(map(len, PROMISES.values()))
    assert found["Small call in a pool of one worker, over the bare exchange"].value == pytest.approx(1.1)
    assert [name for name, was_met in met.items() if was_met is False] == [
        "map of 200,000 tiny items, times faster than ProcessPoolExecutor at its best",
        "Single calls, 8 threads, 2 workers: longest mean wait over the fair share",
        "Memory that streams leave behind",
        "Replacing a killed worker, torch preloaded, until it answered",
    ]


def test_what_needs_torch_is_no_figure_without_it(results):
    replacement = {"numpy": POOL["replacement"]["numpy"]}
    results["pool"] = {"replacement": replacement}
    names = [figure.name for figure in collect_figures(results)]
    assert "Replacing a killed worker, numpy preloaded, until it answered" in names
    assert "Replacing a killed worker, torch preloaded, until it answered" not in names


def test_a_part_of_a_pool_that_failed_meets_nothing(results):
    results["pool"] = {name: {"error": "it broke"} for name in POOL}
    figures = [figure for figure in collect_figures(results) if figure.detail == "it broke"]
    assert len(figures) == sum(map(len, PROMISES.values()))
    assert not any(figure.met for figure in figures)
    results["figures"] = [{**vars(figure), "met": figure.met} for figure in figures]
    assert "| 400,000 items/s" not in render(results)
    assert "≥ 400,000 items/s" in render(results)


def ways(inline: dict[str, float], beside: dict[str, float]) -> dict:
    both = {"inline": inline, "beside": beside}
    return {way: {size: summary(p50) for size, p50 in taken.items()} for way, taken in both.items()}


ZERO_COPY = {
    "argument": {
        "nbytes": 100_000_000,
        "left_out": {"loky": "ImportError: no loky"},
        "nanoseconds": {
            "copy": summary(5e6),
            "copy_and_largest": summary(10e6),
            "atoll": summary(5.5e6),
            "atoll_largest": summary(12e6),
            "process_pool": summary(300e6),
        },
    },
    "result": {
        "nbytes": 100_000_000,
        "left_out": {},
        "nanoseconds": {
            "copy": summary(5e6),
            "copy_and_largest": summary(10e6),
            "atoll": summary(6e6),
            "atoll_largest": summary(11e6),
        },
    },
    "place": {
        "small": summary(1e4),
        "made 1000": summary(2e4),
        "made 1000000000": summary(5e4),
        "passed on 1000000": summary(3e4),
        "given back 30000000": summary(3e6),
    },
    "small": {"small": summary(1e4), "argument": summary(1.4e4), "result": summary(1.2e4), "bytes": summary(1e4)},
    "threshold": {
        "thresholds": {"array": 4096, "bytes": 8192},
        "kinds": {
            "array argument": ways({"1024": 1e4, "4096": 2e4, "8192": 4e4}, {"1024": 3e4, "4096": 3e4, "8192": 3e4}),
            "bytes result": ways({"1024": 1e4, "4096": 1e4, "8192": 1e4}, {"1024": 2e4, "4096": 2e4, "8192": 2e4}),
        },
    },
    "many": {
        "calls": 1000,
        "call": summary(3e6),
        "two_copies": summary(1e6),
        "growth": {"host": 500_000, "worker": 3_000_000},
        "segments": 2,
        "opened": {"host": 4, "worker": 4},
        "segments_in_all": 4,
    },
    "frames": {
        "two_copies": summary(8e5),
        "two_copies_and_inversion": summary(2e6),
        "calls": summary(1e6),
        "computed": summary(2e6),
        "stream": summary(2e6),
    },
    "table": {"copy": summary(5e6), "atoll": summary(6e6)},
    "tensor": {"copy": summary(1e6), "atoll": summary(2e6)},
}


def test_figures_of_arrays(results):
    results["zero_copy"] = ZERO_COPY
    found = {figure.name: figure for figure in collect_figures(results)}
    names = {promise.name for promises in ARRAY_PROMISES.values() for promise in promises}
    assert names <= found.keys()
    values = {name: found[name].value for name in names}
    assert values["Array of 100 MB as an argument, over a warm memcpy"] == pytest.approx(1.1)
    assert values["Array in a segment, any size, over a small call"] == pytest.approx(5.0)
    assert values["In the payload or beside it: the way chosen over the better, at worst"] == pytest.approx(2.0)
    assert values["4K frames through two services, of what two memcpys allow"] == pytest.approx(0.8)
    assert {name for name in names if found[name].met is False} == {
        "Array of 100 MB as an argument, all of it read, over memcpy and reading here",
        "Array of 100 MB as a result, over a warm memcpy",
        "Array in a segment, any size, over a small call",
        "Segments after calls with 10 MB in and 10 MB out",
        "Memory that these calls leave behind",
        "4K frames as a stream through two services, of what two memcpys allow",
    }
    assert values["Result given back to the worker it came from, over a small call"] == pytest.approx(300.0)
    assert "1 GB: 5.00" in found["Array in a segment, any size, over a small call"].detail


def test_from_which_size_on_a_way_is_the_quicker_one():
    kinds = ZERO_COPY["threshold"]["kinds"]
    assert quicker_beside(kinds["array argument"]) == 8192
    assert quicker_beside(kinds["bytes result"]) is None
    assert quicker_beside(ways({"1024": 2e4, "65536": 3e4}, {"1024": 1e4, "65536": 1e4})) == 1024


def test_the_report_has_a_section_about_arrays(results):
    assert "## Arrays" not in render(results)
    page = render({**results, "zero_copy": ZERO_COPY})
    assert "| ProcessPoolExecutor | 300.00 | 600.00 | 60.00 | 10 |" in page
    assert "| 8,192 | 40.0 / 30.0 | 10.0 / 20.0 |" in page
    assert "Left out: loky: ImportError: no loky" in page
    assert page.index("## Arrays") < page.index("## Machine and run")


def test_parts_about_arrays_that_failed_meet_nothing(results):
    results["zero_copy"] = {name: {"error": "it broke"} for name in ZERO_COPY}
    figures = [figure for figure in collect_figures(results) if figure.detail == "it broke"]
    assert len(figures) == sum(map(len, ARRAY_PROMISES.values()))
    assert not any(figure.met for figure in figures)
    assert "## Arrays" not in render(results)
