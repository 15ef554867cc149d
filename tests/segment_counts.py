# SPDX-License-Identifier: Apache-2.0
"""What a process has in shared memory, as the kernel and ``atoll.memory`` see it, for tests that count it."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from types import FrameType

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
        raise AssertionError("not everything was given back:\n" + "\n".join(_what_is_left())) from None
    return atoll.memory()


def _what_is_left() -> list[str]:
    left = [str(atoll.memory())]
    for reference in list(store._holds.values() if isinstance(store._holds, dict) else store._holds):
        held = reference()
        if held is not None:
            views = gc.get_referrers(held)
            keepers = [repr(two)[:200] for one in views for two in gc.get_referrers(one) if two is not views]
            left.append(f"of {held.loans.whose}: {len(held):,} bytes, of which there are views in {keepers}")
    # Arrays are seen by nobody but who has them in a variable: a thread, or an error's traceback.
    for thread, running in sys._current_frames().items():
        left.append(f"thread {thread}: " + "".join(traceback.format_stack(running)[-3:]))
    for one in gc.get_objects():
        if isinstance(one, FrameType) and not one.f_code.co_filename.startswith(sys.prefix):
            keepers = [type(two).__name__ for two in gc.get_referrers(one)]
            left.append(
                f"frame {one.f_code.co_name} at line {one.f_lineno} with {sorted(one.f_locals)}, kept by {keepers}"
            )
    return left
