# SPDX-License-Identifier: Apache-2.0
"""Contenders of one process take turns, in shuffled order, so that a slow minute of the machine hits all of them.

What is timed, and how it is checked, is the contenders' own business.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from time import perf_counter_ns
from typing import Any

# Makes some calls, checks their answers, and returns what each of them took, in nanoseconds.
Contender = Callable[[], Iterable[int]]


def take_turns(
    contenders: Mapping[str, Contender], rounds: int, seldom: Collection[str] = (), every: int = 8
) -> dict[str, list[int]]:
    """The samples of each contender, in nanoseconds. All have a turn that does not count first.

    Args:
        contenders: by name.
        rounds: how often each has its turn.
        seldom: names of those that take so long that they have a turn only in one round of ``every``, after the others.
        every: see ``seldom``.
    """
    for contend in contenders.values():
        list(contend())
    taken: dict[str, list[int]] = {name: [] for name in contenders}
    often = [name for name in contenders if name not in seldom]
    for number in range(rounds):
        names = random.sample(often, len(often))
        if number % every == 0:
            names += seldom
        for name in names:
            taken[name].extend(contenders[name]())
    return taken


def timed(call: Callable[[], Any]) -> tuple[int, Any]:
    """What a call took, in nanoseconds, and what it returned."""
    begin = perf_counter_ns()
    result = call()
    return perf_counter_ns() - begin, result
