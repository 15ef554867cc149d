# SPDX-License-Identifier: Apache-2.0
"""What this process has in shared memory: figures, and the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll_worker.segments import store

from .manifest.sizes import parse_size


@dataclass(frozen=True)
class MemoryStatus:
    """The shared memory of this process, now. Print it for a summary.

    Attributes:
        segments: pieces of shared memory that this process made.
        bytes: how large they are together.
        lent: how many of them other processes have now.
        lent_bytes: how large these are together.
        recycled: how many nobody uses; they are kept to be used again.
        recycled_bytes: how large these are together.
        borrowed: loans from other processes that arrays of this one keep.
        borrowed_bytes: how large the segments of these are together.
        copies: how often bytes were copied into a segment, since this process started.
        copied_bytes: how many bytes those were.
        created: how many segments were made, since this process started.
        budget: how many bytes the segments may have together.
        holders: who has segments of this process now: how many, and how large they are together.
    """

    segments: int
    bytes: int
    lent: int
    lent_bytes: int
    recycled: int
    recycled_bytes: int
    borrowed: int
    borrowed_bytes: int
    copies: int
    copied_bytes: int
    created: int
    budget: int
    holders: Mapping[str, tuple[int, int]]

    def __str__(self) -> str:
        lines = [
            f"{_count(self.segments)}, {_size(self.bytes)} of at most {_size(self.budget)}; {self.created} made so far",
            f"  lent      {_count(self.lent)}, {_size(self.lent_bytes)}",
            f"  recycled  {_count(self.recycled)}, {_size(self.recycled_bytes)}",
            f"borrowed    {_count(self.borrowed)}, {_size(self.borrowed_bytes)}",
            f"copied      {self.copies} times, {_size(self.copied_bytes)}",
        ]
        lines += [f"  {whose}: {_count(count)}, {_size(size)}" for whose, (count, size) in self.holders.items()]
        return "\n".join(lines)


def memory() -> MemoryStatus:
    """What this process has in shared memory now: its segments, who has them, what it borrowed, what was copied."""
    return MemoryStatus(**store.figures())


def set_memory_budget(budget: int | str, *, patience: float | None = None) -> None:
    """How much shared memory this process may have; a quarter of the machine's memory unless it is set, or given in
    bytes as ``ATOLL_MEMORY_BUDGET`` in the environment.

    Args:
        budget: bytes, or text such as ``"2GB"`` or ``"512MiB"``.
        patience: seconds to wait for memory to be given back once it is used up, before ``SegmentsExhausted`` is
            raised; 5 unless it is set.

    Raises:
        ValueError: a wrong value.
    """
    size = parse_size(budget)
    if patience is not None:
        if not 0 <= patience < float("inf"):
            raise ValueError(f"patience: found {patience!r}, expected a number of seconds from 0")
        store.patience = float(patience)
    store.budget = size
    store.settle()


def trim_memory() -> None:
    """Let go of shared memory that nobody uses, instead of keeping it to be used again."""
    store.trim()


def _count(number: int) -> str:
    return f"{number} segment{'' if number == 1 else 's'}"


def _size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"
