# SPDX-License-Identifier: Apache-2.0
"""What a process has in shared memory, as the kernel and ``atoll.memory`` see it, for tests that count it."""

from __future__ import annotations

import gc
import os

import atoll
from atoll_worker.segments import store
from atoll_worker.shared_memory import NAME
from conditions import until


def segment_descriptors(pid: int | str = "self") -> list[str]:
    """The descriptors of shared memory that a process has; those of ledgers, one or two for each worker, included."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if f"memfd:{NAME}" in target:
            found.append(f"{name} -> {target}")
    return found


def until_given_back() -> atoll.MemoryStatus:
    """Wait until nobody has anything of this process, nor it of others."""

    def is_back() -> bool:
        gc.collect()
        status = atoll.memory()
        return not status.lent and not status.borrowed

    try:
        until(is_back)
    except AssertionError:
        raise AssertionError(
            "\n".join(["what is still lent or borrowed:", str(atoll.memory()), *_borrowed()])
        ) from None
    return atoll.memory()


def _borrowed() -> list[str]:
    """What this process has borrowed, and what keeps it."""
    found = []
    for held in filter(None, (reference() for reference in store._holds)):
        keepers = [type(keeper).__name__ for keeper in gc.get_referrers(held)]
        views = [type(two).__name__ for one in gc.get_referrers(held) for two in gc.get_referrers(one)]
        found.append(f"of {held.loans.whose}: {len(held):,} bytes, kept by {keepers}, and these by {views}")
    return found
