# SPDX-License-Identifier: Apache-2.0
"""Whether there can be sandboxes here."""

from __future__ import annotations

import pytest

import atoll
from atoll.processes.sandbox import require_bubblewrap


def _why_not() -> str:
    try:
        require_bubblewrap()
    except atoll.SandboxUnavailable as error:
        return str(error)
    return ""


_REASON = _why_not()
needs_sandbox = pytest.mark.skipif(bool(_REASON), reason=_REASON)
