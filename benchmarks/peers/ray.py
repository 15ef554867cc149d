# SPDX-License-Identifier: Apache-2.0
"""Ray: one actor on a local cluster of one, a method call and ``ray.get``; measured where installed."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from benchmarks.workload import detect

ASYNCHRONOUS = False


def describe() -> dict[str, Any]:
    return {"version": ray.__version__}


@ray.remote
class Vision:
    def detect(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        return detect(*arguments, **keywords)


@contextmanager
def opened() -> Iterator[Callable[..., Any]]:
    # A token and a folder of this run's own: else Ray writes both into places that it keeps.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            actor = Vision.remote()

            def call(*arguments: Any, **keywords: Any) -> Any:
                return ray.get(actor.detect.remote(*arguments, **keywords))

            call(0)  # waits for the actor
            yield call
        finally:
            ray.shutdown()
