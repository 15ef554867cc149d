# SPDX-License-Identifier: Apache-2.0
"""What is borrowed is one's own: whatever is written to it, the lender and later calls never see it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import atoll
from segment_counts import until_given_back

MB = 1 << 20
Random = Callable[[int], np.ndarray]

# Below and above where mappings are looked at before they are emptied; and all in one segment.
sizes = pytest.mark.parametrize("size", [70_000, 300_000, MB, 20 * MB])


@sizes
@pytest.mark.parametrize("shared", [True, False])
def test_arguments_are_written_over_and_the_segment_is_used_again(
    service: Any, random_bytes: Random, size: int, shared: bool
) -> None:
    """In place, all of it or little; then other data goes through the same segment, and the same mapping of it."""
    before = atoll.memory()
    for number in range(6):
        expected = random_bytes(size)
        array = atoll.asarray(expected) if shared else expected.copy()
        checksum = service.checksum(array)
        assert service.scribble(array, number) == checksum
        assert np.array_equal(array, expected)
        assert service.scribble(array[size // 2 : size // 2 + 5000], number) is not None
        assert service.checksum(array) == checksum
        assert np.array_equal(service.echo(array), expected)
        del array
    until_given_back()
    after = atoll.memory()
    assert after.created - before.created <= after.copies - before.copies
    assert after.segments <= 2


@sizes
def test_the_very_segment_written_over_then_changed_here(service: Any, random_bytes: Random, size: int) -> None:
    """A worker's writes are gone when the memory is lent again, and it sees what the lender wrote meanwhile."""
    array = atoll.asarray(random_bytes(size))
    for number in range(5):
        array[:: size // 100] = number
        expected = array.copy()
        assert np.array_equal(service.echo(array), expected)
        service.scribble(array, 200)
        assert np.array_equal(array, expected)


def test_kept_arguments_are_written_over(service: Any, random_bytes: Random) -> None:
    """Two loans of one segment at a time are two memories over there."""
    array = atoll.asarray(random_bytes(MB))
    expected = array.copy()
    service.keep("a", array)
    assert service.scribble(array) == service.scribble(array.copy())
    assert np.array_equal(service.kept_array("a"), expected)
    service.keep("b", array)
    service.drop("a")
    assert np.array_equal(service.kept_array("b"), expected)
    assert np.array_equal(array, expected)


@sizes
def test_results_forced_to_be_writable(service: Any, size: int) -> None:
    """The worker's memory is used again for the next result, of which every byte is right."""
    for seed in range(6):
        result = service.make(size, seed)
        expected = result.copy()
        result.flags.writeable = True
        result[...] = 7
        result[::2] = 8
        again = service.make(size, seed)
        assert np.array_equal(again, expected)
        del result
        gc.collect()
        assert np.array_equal(service.make(size, seed), expected)
        assert np.array_equal(again, expected)


@sizes
def test_results_of_the_workers_own_segment_forced_to_be_writable(service: Any, size: int) -> None:
    """A worker that keeps what it returned has it as it was, and returns it again."""
    service.keep("a", service.make_shared(size, 1))
    first = service.kept_array("a")
    expected = first.copy()
    first.flags.writeable = True
    first[...] = 0
    assert np.array_equal(service.kept_array("a"), expected)
    del first
    assert np.array_equal(service.kept_array("a"), expected)
    service.drop("a")


def test_what_was_written_over_is_passed_on(serve: Callable[..., Any]) -> None:
    """Not the lender's memory, which has other bytes, but these."""
    service, other = serve(), serve()
    result = service.make(MB, 1)
    clean = other.checksum(result)
    assert clean == service.checksum(result)
    result.flags.writeable = True
    result[5000:5010] = 0
    assert other.checksum(result) == other.checksum(result.copy())
    assert other.checksum(result) != clean
    assert np.array_equal(other.echo(result), result)
    # A part that nobody wrote to is passed on as it is.
    assert np.array_equal(other.echo(result[MB // 2 :]), result[MB // 2 :])


def test_written_to_by_way_of_the_buffer(service: Any) -> None:
    """As ``torch.from_numpy`` and ``ctypes`` do, who do not ask whether that is allowed."""
    import ctypes

    result = service.make(MB, 1)
    expected = result.copy()
    ctypes.memset(result.ctypes.data, 0, result.nbytes)
    assert not result.any()
    del result
    for _ in range(3):
        assert np.array_equal(service.make(MB, 1), expected)
    array = atoll.asarray(expected)
    service.keep("a", array)
    assert np.array_equal(service.kept_array("a"), expected)


def test_what_is_kept_stays_as_it_is_when_a_later_value_cannot_be_encoded(service: Any, random_bytes: Random) -> None:
    """On either side."""
    expected = random_bytes(MB)
    service.keep("a", expected)
    result = service.make(MB, 1)
    with pytest.raises(atoll.EncodeError):
        service.echo(threading.Lock())
    with pytest.raises(atoll.EncodeError):
        service.make_lock()
    service.checksum(random_bytes(MB))
    service.make(MB, 2)
    assert np.array_equal(service.kept_array("a"), expected)
    assert np.array_equal(result, np.random.default_rng(1).integers(0, 255, MB, "u1"))


def test_bytes_and_bytearrays_are_ones_own(service: Any) -> None:
    big = bytearray(b"x" * MB)
    came = service.echo(big)
    came[:] = bytes(MB)
    assert big == b"x" * MB
    assert service.echo(big) == big
    assert atoll.memory().borrowed == 0
