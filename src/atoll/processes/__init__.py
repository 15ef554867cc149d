# SPDX-License-Identifier: Apache-2.0
"""Processes: spawning them, watching them, tying them to this one, reading what they print, ending whole trees.

What belongs here: everything that knows what a process is. What does not: what a worker is for (``atoll.pool``).
"""

from __future__ import annotations

from .process import DataConnection, WorkerProcess, start_process
from .processors import Mover
from .warden import warden

__all__ = ["DataConnection", "Mover", "WorkerProcess", "start_process", "warden"]
