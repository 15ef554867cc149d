# SPDX-License-Identifier: Apache-2.0
"""What the Go client's benchmark calls."""

from __future__ import annotations

from typing import Any

from atoll_worker import expose


@expose
def predict(request: dict[str, Any]) -> dict[str, Any]:
    """Next to nothing, so that what is measured is the call."""
    return {"result": request["value"] * 2}


@expose
def echo(value: Any) -> Any:
    """What it was given."""
    return value
