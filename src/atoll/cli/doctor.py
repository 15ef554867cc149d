# SPDX-License-Identifier: Apache-2.0
"""``atoll doctor``: what this machine has, and what that means for atoll."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from .checks import Check, all_checks
from .output import console, print_json

_MARKS = {"good": ("✓", "green"), "limited": ("!", "yellow"), "bad": ("✗", "bold red")}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look at interpreters, uv, cache, shared memory, sandbox tools and GPUs. Status 1 if atoll cannot work."""
    checks = all_checks()
    if as_json:
        print_json([asdict(one) for one in checks])
    else:
        out = console()
        for one in checks:
            out.print(_line(one), soft_wrap=True)
    if any(one.state == "bad" for one in checks):
        raise typer.Exit(1)


def _line(check: Check) -> Text:
    mark, style = _MARKS[check.state]
    text = Text.assemble((mark, style), f" {check.name}: {check.found}")
    text.append(f"\n    {check.means}", style="dim")
    for detail in check.details:
        text.append(f"\n      {detail}", style="dim")
    return text
