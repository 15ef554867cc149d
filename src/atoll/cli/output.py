# SPDX-License-Identifier: Apache-2.0
"""How things are printed: errors, tables, sizes, times, JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.text import Text


def console(*, stderr: bool = False) -> Console:
    """A console for this moment's stdout or stderr. Nothing is highlighted: colours mean something here."""
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False)


def print_error(error: BaseException) -> None:
    """An error's message on stderr, unwrapped, so that what a tool said stays as it said it."""
    out = console(stderr=True)
    out.print(Text("error: ", style="bold red"), end="")
    out.print(Text(str(error)), soft_wrap=True)


def print_json(value: Any) -> None:
    """JSON on stdout, for programs."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def size_text(size: float) -> str:
    """Bytes, as people read them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def ago_text(when: float) -> str:
    """A time, in seconds since the epoch, as how long ago it was."""
    seconds = max(0.0, time.time() - when)
    for count, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        number = int(seconds // count)
        if number:
            return f"{number} {unit}{'' if number == 1 else 's'} ago"
    return "just now"
