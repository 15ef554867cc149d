# SPDX-License-Identifier: Apache-2.0
"""Values of other libraries, as ``arrays`` has those of numpy."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Tuple

    from .arrays import Reducer

RESTORERS: Dict[str, Callable[..., Any]] = {}
BY_NAME: Dict[Tuple[str, str], Reducer] = {}
