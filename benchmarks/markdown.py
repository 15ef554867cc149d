# SPDX-License-Identifier: Apache-2.0
"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], alignment: str, rows: Sequence[Sequence[str]]) -> str:
    """A table; ``alignment`` has a letter for each column, ``l`` or ``r``."""
    rule = {"l": ":--", "r": "--:"}
    lines = [header, [rule[one] for one in alignment], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
