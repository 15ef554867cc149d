# SPDX-License-Identifier: Apache-2.0
"""One promise, and what a run measured for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One promise. ``unit`` is ``x`` for a ratio; ``at_most`` says in which direction the target binds."""

    name: str
    unit: str
    target: float | None
    at_most: bool
    value: float | None
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target was reached; None where there is no target; False where there is no value."""
        if self.target is None:
            return None
        if self.value is None:
            return False
        return self.value <= self.target if self.at_most else self.value >= self.target
