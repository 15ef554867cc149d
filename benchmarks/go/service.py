# SPDX-License-Identifier: Apache-2.0
"""What the Go client's benchmark calls. Nothing is imported for annotations: what a start takes is measured too."""

from __future__ import annotations

from atoll_worker import expose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@expose
def predict(request: dict[str, Any]) -> dict[str, Any]:
    """Next to nothing, so that what is measured is the call."""
    return {"result": request["value"] * 2}


@expose
def echo(value: Any) -> Any:
    """What it was given."""
    return value
