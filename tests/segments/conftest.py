# SPDX-License-Identifier: Apache-2.0
"""For the tests of shared memory: a service that keeps, drops, makes and writes to arrays; nothing shared may be left.

What always holds: after every test here, once its services are closed, this process has lent and borrowed nothing, and
has no descriptor of shared memory. What does not belong here: what one file alone needs.
"""

from __future__ import annotations

import gc
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from atoll_worker.segments import PATIENCE, store
from conditions import WITHIN, until
from segment_counts import segment_descriptors

SERVICE = """\
    import gc, os, threading, zlib
    import numpy as np
    import atoll_worker
    from atoll_worker import expose
    from atoll_worker.segments import store

    kept = {}

    @expose
    def pid():
        return os.getpid()

    @expose
    def checksum(x):
        return zlib.crc32(np.ascontiguousarray(x))

    @expose
    def echo(x):
        return x

    @expose
    def fail(x):
        raise ValueError("as asked", len(x))

    @expose
    def keep(name, x):
        kept[name] = x
        return os.getpid()

    @expose
    def drop(name):
        kept.pop(name, None)
        return os.getpid()

    @expose
    def drop_all():
        kept.clear()
        gc.collect()

    @expose
    def what_is_kept():
        return os.getpid(), {name: zlib.crc32(np.ascontiguousarray(x)) for name, x in kept.items()}

    @expose
    def kept_array(name):
        return kept[name]

    @expose
    def make(size, seed):
        return np.random.default_rng(seed).integers(0, 255, size, "u1")

    @expose
    def make_lock():
        "What cannot cross."
        return threading.Lock()

    @expose
    def make_shared(size, seed):
        x = atoll_worker.empty(size, "u1")
        x[...] = np.random.default_rng(seed).integers(0, 255, size, "u1")
        return x

    @expose
    def scribble(x, number=255):
        "What came, written over; returns what it was."
        before = zlib.crc32(np.ascontiguousarray(x))
        x[...] = number
        return before

    @expose
    def invert(x, out=None):
        if out is None:
            return 255 - x
        np.subtract(255, x, out=out)

    @expose
    def invert_all(x, out):
        for one in out:
            np.subtract(255, x, out=one)

    @expose
    def invert_and_fail(x, out):
        np.subtract(255, x, out=out)
        raise ValueError("after it was written")

    @expose
    def stream(size, count):
        for seed in range(count):
            yield np.random.default_rng(seed).integers(0, 255, size, "u1")

    @expose
    def call_back(function, x):
        return function(x)

    @expose
    def meet(barrier):
        barrier()
        return os.getpid()

    @expose
    def drop_all_and_meet(barrier):
        kept.clear()
        gc.collect()
        barrier()
        return os.getpid()

    @expose
    def figures_and_meet(barrier):
        "What this worker has in shared memory, and its descriptors of such."
        barrier()
        gc.collect()
        store.trim()
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink("/proc/self/fd/" + name))
            except OSError:
                pass
        return os.getpid(), store.figures(), [link for link in links if "memfd:atoll-segment" in link]

    @expose
    def figures():
        gc.collect()
        return store.figures()

    @expose
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    @expose
    def resident():
        with open("/proc/self/smaps_rollup") as file:
            return int(file.read().partition("Anonymous:")[2].split()[0]) * 1024
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file below ``tmp_path``, its text dedented."""

    def write_file(name: str, text: str) -> Path:
        file = tmp_path / name
        file.write_text(textwrap.dedent(text))
        return file

    return write_file


@pytest.fixture(scope="session")
def service_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service's file."""
    file = tmp_path_factory.mktemp("segments") / "arrays_service.py"
    file.write_text(textwrap.dedent(SERVICE))
    return file


@pytest.fixture
def serve(service_file: Path) -> Iterator[Callable[..., Any]]:
    """Makes services; they are closed after the test."""
    made: list[atoll.Service] = []

    def make(**options: Any) -> atoll.Service:
        options.setdefault("timeout", 60)
        service = atoll.Service(service_file, **options)
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()


@pytest.fixture
def service(serve: Callable[..., Any]) -> Any:
    """One with one worker."""
    return serve()


@pytest.fixture(autouse=True)
def nothing_is_shared_any_more() -> Iterator[None]:
    """Before and after every test this process shares nothing, has its budget back, and no descriptor is left."""
    budget = store.budget
    yield
    store.budget, store.patience = budget, PATIENCE
    atoll.shutdown()

    def is_unused() -> bool:
        # A thread that made a call has what it passed and returned for a moment longer than who waited for that.
        gc.collect()
        atoll.trim_memory()
        status = atoll.memory()
        return (status.lent, status.borrowed, status.segments, status.bytes) == (0, 0, 0, 0)

    try:
        until(is_unused)
    except AssertionError:
        raise AssertionError(f"not everything was given back: {atoll.memory()}") from None
    until(lambda: not segment_descriptors(), what="the last descriptor of shared memory to be closed")


@pytest.fixture
def everyone() -> Callable[..., list[Any]]:
    """Calls a function of a service in each of its workers: ``everyone(service, workers, name)``."""

    def call(service: Any, workers: int, name: str) -> list[Any]:
        barrier = threading.Barrier(workers)
        calls = [getattr(service, name).submit(lambda: barrier.wait(WITHIN) and None) for _ in range(workers)]
        return [call.result(2 * WITHIN) for call in calls]

    return call


@pytest.fixture
def random_bytes() -> Callable[[int], np.ndarray]:
    """So many random bytes, others each time."""
    generator = np.random.default_rng(1)
    return lambda size: generator.integers(0, 255, size, "u1")
