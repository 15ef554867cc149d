# SPDX-License-Identifier: Apache-2.0
"""A torch tensor of 25 MB on the CPU as an argument, beside a warm ``Tensor.copy_`` of the same bytes.

    python -m benchmarks.zero_copy_tensor [quick]

A sample is one call, in nanoseconds: the worker looks at the number of items and the last one, another in each call.
This process and the worker run under an interpreter that has torch: ``ATOLL_BENCH_TORCH`` names it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import atoll
from benchmarks.copying import marks
from benchmarks.percentiles import summarize
from benchmarks.turns import Contender, take_turns, timed

ITEMS = 25_000_000 // 4
ROUNDS, QUICK_ROUNDS = 100, 10
SERVICE = Path(__file__).with_name("array_service.py")


def passing(look: Callable[[Any], Any], tensor: Any) -> Contender:
    def contend() -> list[int]:
        tensor[-1] = mark = next(marks)
        taken, answer = timed(lambda: look(tensor))
        if answer != (ITEMS, float(mark)):
            raise RuntimeError(f"{answer} instead of {(ITEMS, float(mark))}")
        return [taken]

    return contend


def copying(tensor: Any) -> Contender:
    copy = tensor.clone()

    def contend() -> list[int]:
        begin = perf_counter_ns()
        copy.copy_(tensor)
        return [perf_counter_ns() - begin]

    return contend


def main() -> int:
    import torch

    torch.set_num_threads(1)  # one thread copies on either side
    tensor = torch.ones(ITEMS)
    with atoll.Service(SERVICE) as service:
        contenders = {"copy": copying(tensor), "atoll": passing(service.look_at_tensor, tensor)}
        taken = take_turns(contenders, QUICK_ROUNDS if "quick" in sys.argv else ROUNDS)
    atoll.shutdown()
    result = {name: asdict(summarize(samples)) for name, samples in taken.items()}
    print(json.dumps({"nbytes": 4 * ITEMS, "torch": torch.__version__, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
