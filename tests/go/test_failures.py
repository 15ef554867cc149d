# SPDX-License-Identifier: Apache-2.0
"""What is shown of a run of Go's tests that failed."""

from __future__ import annotations

import json

import go_failures
from go_failures import failures, outcomes


def said(*lines: tuple[str, str | None, str]) -> str:
    """What ``go test -json`` prints of these actions, tests and texts."""
    reported = []
    for action, test, text in lines:
        event = {"Action": action, "Package": "atoll/clients/go"}
        if test is not None:
            event["Test"] = test
        if action == "output":
            event["Output"] = text
        reported.append(json.dumps(event) + "\n")
    return "".join(reported)


RUN = said(
    ("run", "TestGood", ""),
    ("output", "TestGood", "=== RUN   TestGood\n"),
    ("output", "TestGood", "noise\n"),
    ("output", "TestGood", "--- PASS: TestGood (0.00s)\n"),
    ("pass", "TestGood", ""),
    ("run", "TestBad", ""),
    ("output", "TestBad", "=== RUN   TestBad\n"),
    ("run", "TestBad/fine", ""),
    ("output", "TestBad/fine", "noise\n"),
    ("pass", "TestBad/fine", ""),
    ("run", "TestBad/wrong", ""),
    ("output", "TestBad/wrong", "    bad_test.go:4: it is wrong\n"),
    ("fail", "TestBad/wrong", ""),
    ("output", "TestBad", "--- FAIL: TestBad (0.00s)\n"),
    ("fail", "TestBad", ""),
    ("run", "TestRace", ""),
    ("output", "TestRace", "==================\n"),
    ("output", "TestRace", "WARNING: DATA RACE\n"),
    ("output", "TestRace", "Read at 0x00c000018178 by goroutine 12:\n"),
    ("output", "TestRace", "==================\n"),
    ("output", "TestRace", "    testing.go:1867: race detected during execution of test\n"),
    ("fail", "TestRace", ""),
    ("run", "TestSkipped", ""),
    ("output", "TestSkipped", "noise\n"),
    ("skip", "TestSkipped", ""),
    ("run", "TestHangs", ""),
    ("output", "TestHangs", "waiting\n"),
    ("output", "TestHangs", "panic: test timed out after 3s\n"),
    ("output", "TestHangs", "goroutine 1 [running]:\n"),
    ("output", None, "FAIL\tatoll/clients/go\t3.1s\n"),
    ("output", "TestGood", "panic: that it speaks of\n"),
    ("fail", None, ""),
)


def test_what_failed_comes_first_and_nothing_of_what_passed() -> None:
    assert failures(RUN).splitlines() == [
        "=== RUN   TestBad",
        "--- FAIL: TestBad (0.00s)",
        "",
        "    bad_test.go:4: it is wrong",
        "",
        "    testing.go:1867: race detected during execution of test",
        "",
        "waiting",
        "",
        "=== race during TestRace",
        "Read at 0x00c000018178 by goroutine 12:",
        "",
        "panic: test timed out after 3s",
        "goroutine 1 [running]:",
        "FAIL\tatoll/clients/go\t3.1s",
    ]


def test_how_each_test_ended() -> None:
    assert outcomes(RUN) == {
        "TestGood": "pass",
        "TestBad": "fail",
        "TestBad/fine": "pass",
        "TestBad/wrong": "fail",
        "TestRace": "fail",
        "TestSkipped": "skip",
        "TestHangs": "run",
    }


def test_much_is_shortened_in_its_middle() -> None:
    much = [("output", "TestBad", f"line {number}\n") for number in range(10_000)]
    shown = failures(said(("run", "TestBad", ""), *much, ("fail", "TestBad", "")))
    assert len(shown) < go_failures.LONGEST + 100
    assert shown.startswith("line 0\n")
    assert shown.endswith("line 9999\n")


def test_what_is_no_report_is_shown() -> None:
    assert failures("# atoll/clients/go\n./call.go:1:1: syntax error\n7\n") == (
        "# atoll/clients/go\n./call.go:1:1: syntax error\n7\n"
    )
