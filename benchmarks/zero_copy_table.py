# SPDX-License-Identifier: Apache-2.0
"""An Arrow table of 100 MB as an argument, beside a warm copy of the same bytes.

    python -m benchmarks.zero_copy_table [quick]

A sample is one call, in nanoseconds: the worker looks at the number of rows and the last value. The table's columns are
two of 64-bit numbers; each call passes another of two tables, so that what comes back tells which one it was.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy

import atoll
from benchmarks import array_service
from benchmarks.copying import copying, random_bytes
from benchmarks.percentiles import summarize
from benchmarks.turns import Contender, take_turns, timed

ROWS = 100_000_000 // 16
ROUNDS, QUICK_ROUNDS = 60, 6
SERVICE = Path(array_service.__file__)


def passing(look: Callable[[Any], Any], tables: list[Any]) -> Contender:
    turns = itertools.cycle(enumerate(tables))

    def contend() -> list[int]:
        number, table = next(turns)
        taken, answer = timed(lambda: look(table))
        if answer != (ROWS, number):
            raise RuntimeError(f"{answer} instead of {(ROWS, number)}")
        return [taken]

    return contend


def main() -> int:
    import pyarrow

    tables = []
    for number in range(2):
        column = numpy.arange(ROWS)
        column[-1] = number
        tables.append(pyarrow.table({"number": column, "weight": numpy.ones(ROWS)}))
    array = random_bytes(tables[0].nbytes)
    with atoll.Service(SERVICE) as service:
        contenders = {"copy": copying(array, array.copy()), "atoll": passing(service.look_at_table, tables)}
        taken = take_turns(contenders, QUICK_ROUNDS if "quick" in sys.argv else ROUNDS)
    atoll.shutdown()
    result = {name: asdict(summarize(samples)) for name, samples in taken.items()}
    print(json.dumps({"nbytes": tables[0].nbytes, "pyarrow": pyarrow.__version__, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
