# SPDX-License-Identifier: Apache-2.0
"""A worker, a service or this process ends while the other side has its memory: what was received stays valid, and
nothing is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from conditions import end, run_python, start_python, until, until_gone
from segment_counts import segment_descriptors, until_given_back
from storm import TIRELESS, ready_pids

MB = 1 << 20
Random = Callable[[int], np.ndarray]


def made(size: int, seed: int) -> np.ndarray:
    """What ``make`` of the service returns."""
    return np.random.default_rng(seed).integers(0, 255, size, "u1")


def test_results_outlive_their_service(serve: Callable[..., Any]) -> None:
    service = serve()
    results = [service.make(size, 1) for size in (100, 70_000, MB)]
    (pid,) = ready_pids(service)
    service.close()
    until_gone(pid)
    for size, result in zip((100, 70_000, MB), results, strict=True):
        assert np.array_equal(result, made(size, 1))
    result = results = None  # type: ignore[assignment]
    until_given_back()


def test_results_outlive_a_killed_worker(serve: Callable[..., Any]) -> None:
    service = serve(**TIRELESS)
    result, shared = service.make(MB, 1), service.make_shared(3 * MB, 2)
    (pid,) = ready_pids(service)
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in ready_pids(service))
    for _ in range(3):
        assert np.array_equal(service.make(MB, 3), made(MB, 3))
    assert np.array_equal(result, made(MB, 1))
    assert np.array_equal(shared, made(3 * MB, 2))
    # And may be passed on, to whom else as to the one that came after it.
    assert np.array_equal(service.echo(result), result)


def test_a_killed_worker_gives_back(serve: Callable[..., Any], random_bytes: Random) -> None:
    service = serve(**TIRELESS)
    array = atoll.asarray(random_bytes(MB))
    service.keep("a", array)
    service.keep("b", random_bytes(MB))
    assert atoll.memory().lent == 2
    (pid,) = ready_pids(service)
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in ready_pids(service))
    until(lambda: atoll.memory().lent == 0)
    assert atoll.memory().recycled == 1
    assert service.checksum(array) == service.checksum(array.copy())


def test_reloading_gives_back(serve: Callable[..., Any], random_bytes: Random) -> None:
    service = serve(workers=2)
    for name in "abcd":
        service.keep(name, random_bytes(MB))
    results = [service.make(MB, seed) for seed in range(4)]
    service.reload(30)
    until(lambda: atoll.memory().lent == 0)
    assert all(np.array_equal(result, made(MB, seed)) for seed, result in enumerate(results))


def test_a_worker_retires_with_results_held(serve: Callable[..., Any]) -> None:
    service = serve(recycle={"calls": 3})
    results = [service.make(MB, seed) for seed in range(10)]
    assert all(np.array_equal(result, made(MB, seed)) for seed, result in enumerate(results))
    assert atoll.memory().borrowed == 10
    results.clear()
    until_given_back()


def test_passed_on_after_its_worker_is_gone(serve: Callable[..., Any]) -> None:
    """Whoever has it then lets go of it, with its descriptor, once this process does."""
    service, other = serve(), serve()
    result = service.make(MB, 1)
    other.checksum(result)
    service.close()
    assert np.array_equal(other.invert(result), 255 - made(MB, 1))
    assert np.array_equal(other.echo(result[5:]), made(MB, 1)[5:])
    (pid,) = ready_pids(other)
    result = None
    until_given_back()

    def lets_go() -> bool:
        atoll.trim_memory()
        other.figures_and_meet(lambda: None)
        return len(segment_descriptors(pid)) <= 2

    until(lets_go)
    until(lambda: len(segment_descriptors()) <= 2)


def test_passed_on_and_kept_by_another(serve: Callable[..., Any]) -> None:
    """The first worker's memory is not used again while the third process has it."""
    service, other = serve(), serve()
    result = service.make(MB, 1)
    other.keep("a", result)
    del result
    for seed in range(5):
        assert np.array_equal(service.make(MB, 100 + seed), made(MB, 100 + seed))
    assert np.array_equal(other.kept_array("a"), made(MB, 1))
    service.close()
    assert np.array_equal(other.kept_array("a"), made(MB, 1))
    other.drop("a")
    until_given_back()


HOST = """\
    import sys
    import numpy as np
    import atoll
    service = atoll.Service(sys.argv[1], timeout=60)
    result = service.make(3_000_000, 1)
    array = atoll.asarray(np.ones(2_000_000, "u1"))
    service.keep("a", array)
    view = result[::2]
    print(service.status().workers[0].pid, flush=True)
    if sys.argv[2] == "pause":
        import signal
        signal.pause()
    elif sys.argv[2] == "raise":
        raise SystemExit(3)
"""


@pytest.mark.parametrize("how", ["end", "raise"])
def test_a_host_ends_holding_all(write: Callable[[str, str], Path], service_file: Path, how: str) -> None:
    done = run_python(write("host.py", HOST), str(service_file), how)
    assert done.stderr == ""
    assert done.returncode == (3 if how == "raise" else 0)
    until_gone(int(done.stdout))


def test_a_host_is_killed(write: Callable[[str, str], Path], service_file: Path) -> None:
    process = start_python(write("host.py", HOST), str(service_file), "pause")
    try:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
    finally:
        end(process)
    until_gone(pid)


def test_an_abandoned_stream_gives_back(service: Any) -> None:
    """What it had fetched ahead included."""
    stream = service.stream(100_000, 1000)
    for _, item in zip(range(50), stream, strict=False):
        assert item.size == 100_000
    del stream, item
    until_given_back()
    until(lambda: service.figures()["lent"] == 0)
    with service.stream(MB, 10) as stream:
        next(stream)
    until_given_back()
    until(lambda: service.figures()["lent"] == 0)


def test_a_cancelled_call_gives_back(service: Any, random_bytes: Random) -> None:
    """Ended in the middle of a callback that has the array, and whose answer nobody waits for."""
    import threading

    array = atoll.asarray(random_bytes(MB))
    for _ in range(3):
        entered, leave = threading.Event(), threading.Event()

        def wait(x: Any, entered: threading.Event = entered, leave: threading.Event = leave) -> Any:
            entered.set()
            leave.wait(30)
            return x

        call = service.call_back.submit(wait, array)
        assert entered.wait(30)
        call.cancel()
        leave.set()
        assert isinstance(call.exception(30), atoll.CallCancelled)
        del call
    until(lambda: atoll.memory().lent == 0)
    until(lambda: service.figures()["lent"] == 0)
    until(lambda: service.figures()["borrowed"] == 0)


def test_a_cancelled_task_gives_back(service: Any, random_bytes: Random) -> None:
    import asyncio

    array = atoll.asarray(random_bytes(MB))

    async def main() -> None:
        for delay in (0.0, 0.0005, 0.001, 0.002, 0.005):
            task = asyncio.create_task(service.echo.aio([array, random_bytes(3 * MB)]))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    until_given_back()
    until(lambda: service.figures()["lent"] == 0)
    until(lambda: service.figures()["borrowed"] == 0)
