# SPDX-License-Identifier: Apache-2.0
"""What has to be read of a run of Go's tests that failed.

What always holds: what failed comes before everything else, briefly, and what passed is left out; so whoever cuts a
long report cuts none of it. What does not belong here: running anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

# Of one test, and of how a process ended, in characters: the middle of more is left out.
LONGEST = 4000

_RULE = "==================\n"
_RACE = "WARNING: DATA RACE\n"
_PANICS = ("panic: ", "fatal error: ", "SIGSEGV", "SIGQUIT", "unexpected fault address ")


def events(said: str) -> list[dict[str, str]]:
    """What ``go test -json`` reports, one after the other; what is no report, as of a build, counts as output."""
    reported = []
    for line in said.splitlines(keepends=True):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        reported.append(event if isinstance(event, dict) else {"Action": "output", "Output": line})
    return reported


def outcomes(said: str) -> dict[str, str]:
    """How each test ended, by its name: ``"pass"``, ``"fail"`` or ``"skip"``; ``"run"`` if it did not."""
    names: dict[str, str] = {}
    for event in events(said):
        if "Test" in event and event["Action"] in ("run", "pass", "fail", "skip"):
            names[event["Test"]] = event["Action"]
    return names


def failures(said: str) -> str:
    """What the tests that failed, or never ended, printed; then data races and panics; then what no test printed.

    Args:
        said: what ``go test -json`` printed.
    """
    ends = outcomes(said)
    own: dict[str, list[str]] = {name: [] for name, end in ends.items() if end in ("fail", "run")}
    races: list[list[str]] = []
    panic: list[str] = []
    others: list[str] = []
    race: list[str] | None = None
    rule = False  # the line before was one, of which the next says what it begins
    for event in events(said):
        text, name = event.get("Output"), event.get("Test")
        if event["Action"] not in ("output", "build-output") or text is None:
            continue
        if race is not None:
            race = None if text == _RULE else race
            if race is not None:
                race.append(text)
        elif text == _RACE and rule:
            race = [f"=== race during {name}\n"]
            races.append(race)
        elif text == _RULE or (name is not None and name not in own):
            pass
        elif panic or text.startswith(_PANICS):
            panic.append(text)
        else:
            (others if name is None else own[name]).append(text)
        rule = text == _RULE
    return "\n".join(_brief(lines) for lines in [*own.values(), *races, panic, others] if lines)


def _brief(lines: Iterable[str]) -> str:
    text = "".join(lines)
    if len(text) <= LONGEST:
        return text
    end = LONGEST // 4
    return f"{text[: LONGEST - end]}\n[... {len(text) - LONGEST:,} characters ...]\n{text[-end:]}"
