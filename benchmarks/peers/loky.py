# SPDX-License-Identifier: Apache-2.0
"""loky's executor with one worker that never times out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import loky

from benchmarks.workload import detect

ASYNCHRONOUS = False


def describe() -> dict[str, Any]:
    return {"version": loky.__version__}


@contextmanager
def opened() -> Iterator[Callable[..., Any]]:
    with loky.ProcessPoolExecutor(max_workers=1) as executor:

        def call(*arguments: Any, **keywords: Any) -> Any:
            return executor.submit(detect, *arguments, **keywords).result()

        call(0)  # starts the worker
        yield call
