# SPDX-License-Identifier: Apache-2.0
"""Processes: spawning them, watching them, tying them to this one, reading what they print, ending whole trees.

What belongs here: everything that knows what a process is. What does not: what a worker is for (``atoll.pool``).
"""

from __future__ import annotations

from .ends import DataConnection
from .limits import Limits, thread_variables
from .output import output_reader
from .process import WorkerProcess, start_process
from .processors import Mover
from .sandbox import SandboxPolicy, is_broad, sandbox_environ
from .tree import Strays
from .usage import Usage, tree_memory, tree_rss, usage, wants_processor
from .warden import warden

__all__ = [
    "DataConnection",
    "Limits",
    "Mover",
    "SandboxPolicy",
    "Strays",
    "Usage",
    "WorkerProcess",
    "is_broad",
    "output_reader",
    "sandbox_environ",
    "start_process",
    "thread_variables",
    "tree_memory",
    "tree_rss",
    "usage",
    "wants_processor",
    "warden",
]
