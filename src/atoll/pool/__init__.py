# SPDX-License-Identifier: Apache-2.0
"""The workers of a service: starting them, calling them, replacing them.

What belongs here: everything between "call this function" and bytes on a connection. What does not: what a user
sees of it (``atoll.client``), what a process is (``atoll.processes``).
"""

from __future__ import annotations

from .pool import Pool, pools

__all__ = ["Pool", "pools"]
