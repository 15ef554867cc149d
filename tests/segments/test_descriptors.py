# SPDX-License-Identifier: Apache-2.0
"""Descriptors run out: calls are right all the same, by copies; and few are needed for many arrays."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import atoll
from atoll_worker.segments import store
from conditions import until
from segment_counts import segment_descriptors, until_given_back
from storm import ready_pids

KB = 1 << 10
MB = 1 << 20
Random = Callable[[int], np.ndarray]


@pytest.fixture
def few_files() -> Iterator[Callable[[int], None]]:
    """Allow this process to open only so many files more than it has open, wherever there are holes among them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling: list[int] = []

    def limit(more: int) -> None:
        while filling:
            os.close(filling.pop())
        # Who started a worker looks at its memory after it was called, by files of /proc.
        until(lambda: not any(one.name == "atoll-start" for one in threading.enumerate()))
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, before[1]))
        with contextlib.suppress(OSError):
            while True:
                filling.append(os.dup(0))
        for _ in range(more):
            os.close(filling.pop())

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for fd in filling:
        os.close(fd)


def test_more_results_are_kept_than_may_be_borrowed(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "most_borrowed", 5)
    kept = [service.make(100 * KB + seed, seed) for seed in range(30)]
    for seed, array in enumerate(kept):
        assert np.array_equal(array, np.random.default_rng(seed).integers(0, 255, 100 * KB + seed, "u1"))
    assert atoll.memory().borrowed == 5
    kept[0] = None
    kept.append(service.make(MB, 99))
    assert atoll.memory().borrowed == 5
    kept.clear()
    until_given_back()
    until(lambda: service.figures()["lent"] == 0)


def test_a_worker_with_few_files_keeps_many_arguments(serve: Callable[..., Any], random_bytes: Random) -> None:
    service = serve(open_files=64)
    arrays = [random_bytes(100 * KB + number) for number in range(60)]
    for number, array in enumerate(arrays):
        service.keep(f"{number}", array)
    for number, array in enumerate(arrays):
        assert np.array_equal(service.kept_array(f"{number}"), array), number
    assert service.status().restarts == 0
    service.drop_all()
    until_given_back()


def test_a_worker_with_few_files_is_passed_many_sizes(serve: Callable[..., Any], random_bytes: Random) -> None:
    """Each in a segment of another size, which is let go of at once, and kept by the host to be used again."""
    service = serve(open_files=64)
    arrays = [atoll.asarray(random_bytes(50 * KB * (number + 1))) for number in range(60)]
    for _ in range(3):
        for array in arrays:
            assert service.checksum(array) == service.checksum(array.copy())
    assert service.status().restarts == 0
    assert service.descriptors() < 60
    arrays.clear()


def test_a_worker_with_few_files_returns_many_arrays(serve: Callable[..., Any]) -> None:
    service = serve(open_files=64)
    kept = [service.make(100 * KB + seed, seed) for seed in range(60)]
    for seed, array in enumerate(kept):
        assert np.array_equal(array, np.random.default_rng(seed).integers(0, 255, 100 * KB + seed, "u1"))
    assert service.status().restarts == 0
    kept.clear()
    until_given_back()


def test_many_arrays_at_once_with_few_files(serve: Callable[..., Any], random_bytes: Random) -> None:
    """In one call: more than the worker can have descriptors."""
    service = serve(open_files=64)
    arrays = [random_bytes(300 * KB + number) for number in range(80)]
    shared = [atoll.asarray(array) for array in arrays]
    for value in (arrays, shared, arrays + shared):
        came = service.echo(value)
        assert len(came) == len(value)
        assert all(np.array_equal(one, other) for one, other in zip(came, value, strict=True))
        del came
    assert service.status().restarts == 0


@pytest.mark.parametrize("more", [0, 1, 2, 3, 4, 6, 8, 12])
def test_a_host_with_few_files(service: Any, random_bytes: Random, few_files: Callable[[int], None], more: int) -> None:
    """Whatever is out of reach, the call is right; and once there are files again, memory is shared again."""
    assert service.checksum(random_bytes(10)) is not None
    arrays = [random_bytes(300 * KB * (number + 1)) for number in range(4)]
    few_files(more)
    results = []
    for array in arrays:
        results.append(service.echo(array))
        results.append(service.invert(array))
    for number, array in enumerate(arrays):
        assert np.array_equal(results[2 * number], array)
        assert np.array_equal(results[2 * number + 1], 255 - array)
    few_files(1000)
    results.clear()
    for array in arrays:  # what was copied for want of descriptors is passed again
        assert np.array_equal(service.echo(array), array)
        out = np.empty_like(array)
        service.invert(array, out=out)
        assert np.array_equal(out, 255 - array)
    until_given_back()


def test_out_where_no_file_is_left_is_a_clear_error(
    service: Any, random_bytes: Random, few_files: Callable[[int], None]
) -> None:
    assert service.checksum(random_bytes(10)) is not None
    atoll.trim_memory()
    few_files(0)
    with pytest.raises(OSError, match=r"written to|open files"):
        service.invert(np.ones(MB, "u1"), out=np.zeros(MB, "u1"))
    out = np.zeros(MB, "u1")
    few_files(1000)
    service.invert(np.ones(MB, "u1"), out=out)
    assert (out == 254).all()


def test_descriptors_of_many_sizes_are_let_go_of(service: Any, random_bytes: Random) -> None:
    for number in range(40):
        assert service.checksum(random_bytes(50 * KB * (number + 1))) is not None
    atoll.trim_memory()
    until(lambda: len(segment_descriptors()) <= 2)
    (pid,) = ready_pids(service)
    until(lambda: len(segment_descriptors(pid)) <= 2)
