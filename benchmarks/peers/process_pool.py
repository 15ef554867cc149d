# SPDX-License-Identifier: Apache-2.0
"""``concurrent.futures.ProcessPoolExecutor`` with one worker and the platform's default start method."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from benchmarks.workload import detect

ASYNCHRONOUS = False


def describe() -> dict[str, Any]:
    return {"start_method": multiprocessing.get_start_method()}


@contextmanager
def opened() -> Iterator[Callable[..., Any]]:
    with ProcessPoolExecutor(max_workers=1) as executor:

        def call(*arguments: Any, **keywords: Any) -> Any:
            return executor.submit(detect, *arguments, **keywords).result()

        call(0)  # starts the worker
        yield call
