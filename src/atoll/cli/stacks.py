# SPDX-License-Identifier: Apache-2.0
"""``atoll stacks``: where a worker is."""

from __future__ import annotations

from typing import Annotated

import typer


def stacks(
    pid: Annotated[int, typer.Argument(help="Process id of a worker, or of the sandbox around one.", min=1)],
    native: Annotated[bool, typer.Option(help="Also the native stacks.")] = True,
) -> None:
    """Print where a worker is: its Python and native stacks, innermost frame first.

    Works for any worker of the same user, from any terminal, whatever the worker is doing. It runs on.
    """
    from ..processes.stacks import native_stacks, python_stacks, worker_at

    worker = worker_at(pid)
    python = python_stacks(worker, timeout=5.0)  # a busy machine lets it answer late
    print(f"Python stacks of process {worker}\n")
    print(python or "(no answer: it is stopped, or every thread of it blocks signals)")
    if native:
        print(f"\nNative stacks of process {worker}\n")
        print(native_stacks(worker, timeout=20.0) or "(it ended)")
