# SPDX-License-Identifier: Apache-2.0
"""Names of parametrised tests: the same in every process, so that tests can be shared out among several."""

from __future__ import annotations

import re
from typing import Any


def described(value: Any) -> str:
    """What a value looks like, without where it happens to lie in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
