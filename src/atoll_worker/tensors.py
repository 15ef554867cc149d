# SPDX-License-Identifier: Apache-2.0
"""Tensors of torch, as ``arrays`` has those of numpy: what crosses is what they are made of, beside the bytes.

What does not belong here: tensors of a CUDA device (``cuda``).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Tuple

    from .arrays import Reducer

RESTORERS: Dict[str, Callable[..., Any]] = {}
BY_NAME: Dict[Tuple[str, str], Reducer] = {}
