# SPDX-License-Identifier: Apache-2.0
"""What every figure of arrays is measured by: a warm ``numpy.copyto`` of the same bytes in this process, to where bytes
were before, so that no page has to be found for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import numpy

from benchmarks.turns import Contender

# What the last byte of an array is set to before each call, so that an answer to the one before is told apart.
marks = itertools.cycle(range(101, 200))


def random_bytes(nbytes: int) -> Any:
    """An array of bytes below 100, the first of which is 7."""
    array = numpy.random.default_rng(0).integers(0, 100, nbytes, dtype=numpy.uint8)
    array[0] = 7
    return array


def copying(array: Any, copy: Any, also: Callable[[Any], Any] | None = None, times: int = 1) -> Contender:
    """The reference as a contender: ``times`` copies, and then something done with them. A sample is all of it."""

    def contend() -> list[int]:
        begin = perf_counter_ns()
        for _ in range(times):
            numpy.copyto(copy, array)
        if also is not None:
            also(copy)
        return [perf_counter_ns() - begin]

    return contend
