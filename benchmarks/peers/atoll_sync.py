# SPDX-License-Identifier: Apache-2.0
"""atoll as a user has it: a decorated function, called like a local one. Variants are set by environment
variables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import atoll

ASYNCHRONOUS = False


@atoll.function
def detect(image_id, *, threshold=0.5, label="cat"):
    return {"id": image_id, "label": label, "score": threshold}


def describe() -> dict[str, Any]:
    settings = {name: value for name, value in os.environ.items() if name in ("ATOLL_SPIN", "ATOLL_LANE")}
    return {"version": getattr(atoll, "__version__", "unknown"), **settings}


@contextmanager
def opened() -> Iterator[Callable[..., Any]]:
    try:
        detect(0)
        yield detect
    finally:
        detect.close()
        atoll.shutdown()
