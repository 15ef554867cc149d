# SPDX-License-Identifier: Apache-2.0
"""Shared memory is used up: whoever needs some waits for a bounded time, and is told who has it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import atoll
from conditions import until
from segment_counts import until_given_back

MB = 1 << 20
Random = Callable[[int], np.ndarray]


def test_who_has_what_is_said(service: Any, random_bytes: Random) -> None:
    atoll.set_memory_budget(4 * MB, patience=0.05)
    pid = service.keep("a", random_bytes(MB))
    mine = atoll.asarray(random_bytes(2 * MB))
    with pytest.raises(atoll.SegmentsExhausted) as caught:
        service.checksum(random_bytes(2 * MB))
    message = str(caught.value)
    assert str(pid) in message
    assert "arrays of this process: 1 segment, 2,097,152 bytes" in message
    assert "4,194,304" in message
    assert "set_memory_budget" in message
    with pytest.raises(atoll.SegmentsExhausted):
        atoll.empty(2 * MB, "u1")
    # All else goes on.
    assert service.checksum(random_bytes(1000)) is not None
    assert service.checksum(mine) is not None
    service.drop("a")
    until_given_back()
    assert service.checksum(random_bytes(2 * MB)) is not None
    atoll.set_memory_budget("1GB")
    assert service.checksum(random_bytes(9 * MB)) is not None


def test_what_never_fits_is_refused_at_once(service: Any, random_bytes: Random) -> None:
    atoll.set_memory_budget(MB, patience=60)
    began = time.monotonic()
    with pytest.raises(atoll.SegmentsExhausted):
        service.checksum(random_bytes(2 * MB))
    assert time.monotonic() - began < 30  # it would be 60
    with pytest.raises(ValueError, match="patience"):
        atoll.set_memory_budget(MB, patience=-1)


def test_it_is_waited_for(service: Any, random_bytes: Random) -> None:
    """Until another thread lets go."""
    atoll.set_memory_budget(4 * MB, patience=60)
    held = [atoll.asarray(random_bytes(3 * MB))]
    call = service.checksum.submit(random_bytes(3 * MB))
    until(lambda: service.status().in_flight or True)
    assert not call.done()
    held.clear()
    assert call.result(30) is not None


def test_it_is_waited_for_until_a_worker_gives_back(serve: Callable[..., Any], random_bytes: Random) -> None:
    service, other = serve(), serve()
    atoll.set_memory_budget(4 * MB, patience=60)
    service.keep("a", random_bytes(3 * MB))
    call = other.checksum.submit(random_bytes(3 * MB))
    assert not call.done()
    service.drop("a")
    assert call.result(30) is not None


def test_it_is_waited_for_until_the_worker_that_has_it_ends(serve: Callable[..., Any], random_bytes: Random) -> None:
    service, other = serve(), serve()
    atoll.set_memory_budget(4 * MB, patience=60)
    service.keep("a", random_bytes(3 * MB))
    call = other.checksum.submit(random_bytes(3 * MB))
    service.close()
    assert call.result(30) is not None


def test_tasks_wait_without_the_loop(service: Any, random_bytes: Random) -> None:
    """The second one waits for what the first one holds, and the loop goes round meanwhile."""
    atoll.set_memory_budget(4 * MB, patience=60)

    async def main() -> None:
        held = [atoll.asarray(random_bytes(3 * MB))]
        second = asyncio.create_task(service.checksum.aio(random_bytes(3 * MB)))
        rounds = 0
        while rounds < 50:
            await asyncio.sleep(0)
            rounds += 1
        assert not second.done()
        held.clear()
        assert await asyncio.wait_for(second, 30) is not None
        atoll.set_memory_budget(4 * MB, patience=0.05)
        held.append(atoll.asarray(random_bytes(3 * MB)))
        with pytest.raises(atoll.SegmentsExhausted):
            await service.checksum.aio(random_bytes(3 * MB))
        with pytest.raises(atoll.SegmentsExhausted):
            await service.invert.aio(held[0], out=np.zeros(3 * MB, "u1"))

    asyncio.run(main())
    assert service.checksum(random_bytes(3 * MB)) is not None


def test_many_tasks_share_little_room(serve: Callable[..., Any], random_bytes: Random) -> None:
    service = serve(workers=2)
    atoll.set_memory_budget(4 * MB, patience=60)
    arrays = [random_bytes(MB) for _ in range(24)]

    async def main() -> list[Any]:
        return await asyncio.gather(*(service.checksum.aio(array) for array in arrays))

    answers = asyncio.run(main())
    assert answers == [service.checksum(array) for array in arrays]


def test_many_threads_share_little_room(serve: Callable[..., Any], random_bytes: Random) -> None:
    service = serve(workers=2)
    atoll.set_memory_budget(4 * MB, patience=60)
    arrays = [random_bytes(MB + 1) for _ in range(24)]
    calls = [service.echo.submit(array) for array in arrays]
    for call, array in zip(calls, arrays, strict=True):
        assert np.array_equal(call.result(60), array)


def test_a_worker_that_has_no_room_for_its_result(serve: Callable[..., Any]) -> None:
    service = serve(memory_budget=4 * MB, env_vars={"ATOLL_MEMORY_BUDGET": str(4 * MB)})
    held = [service.make(3 * MB, 1)]
    began = time.monotonic()
    with pytest.raises((atoll.SegmentsExhausted, atoll.EncodeError), match="4,194,304"):
        service.make(3 * MB, 2)
    assert time.monotonic() - began < 30
    held.clear()
    assert service.make(3 * MB, 2).size == 3 * MB
    with pytest.raises((atoll.SegmentsExhausted, atoll.EncodeError), match="budget"):
        service.make(5 * MB, 2)
    assert service.make(MB, 2).size == MB
    assert service.status().restarts == 0


def test_a_worker_waits_for_what_the_host_lets_go_of(serve: Callable[..., Any]) -> None:
    service = serve(env_vars={"ATOLL_MEMORY_BUDGET": str(4 * MB)})
    held = [service.make(3 * MB, 1)]
    call = service.make.submit(3 * MB, 2)
    begun = threading.Event()
    threading.Thread(target=lambda: (held.clear(), begun.set())).start()
    assert begun.wait(30)
    assert call.result(30).size == 3 * MB


def test_writable_results_need_room_here(service: Any) -> None:
    atoll.set_memory_budget(4 * MB, patience=0.05)
    held = service.make.options(writable=True)(3 * MB, 1)
    with pytest.raises(atoll.SegmentsExhausted):
        service.make.options(writable=True)(3 * MB, 2)
    assert service.make(3 * MB, 2).size == 3 * MB
    del held
    assert service.make.options(writable=True)(3 * MB, 2).size == 3 * MB
    until(lambda: service.figures()["lent"] == 0)


def test_out_needs_room_here(service: Any, random_bytes: Random) -> None:
    atoll.set_memory_budget(4 * MB, patience=0.05)
    x = atoll.asarray(random_bytes(3 * MB))
    with pytest.raises(atoll.SegmentsExhausted):
        service.invert(x, out=np.zeros(3 * MB, "u1"))
    out = np.zeros(1000, "u1")
    service.invert(x[:1000], out=out)
    assert np.array_equal(out, 255 - x[:1000])
