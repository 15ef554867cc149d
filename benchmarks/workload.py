# SPDX-License-Identifier: Apache-2.0
"""The one call every contender makes: keyword arguments in, a small dict out, next to no work in between.

Standard library only: some peers import this module in processes of their own.
"""

from __future__ import annotations

from typing import Any

THRESHOLD = 0.25
LABEL = "dog"


class WrongReply(Exception):
    """A contender returned something else than the function returns when called directly."""


def detect(image_id: int, *, threshold: float = 0.5, label: str = "cat") -> dict[str, Any]:
    """What runs on the far side. Every contender runs this text, or a copy of it where code travels as
    text.
    """
    return {"id": image_id, "label": label, "score": threshold}


def check(image_id: int, reply: object) -> None:
    """Raises WrongReply unless ``reply`` is exactly what the call asked for."""
    if reply != {"id": image_id, "label": LABEL, "score": THRESHOLD} or type(reply) is not dict:
        raise WrongReply(f"call {image_id} was answered with {reply!r}")
