# SPDX-License-Identifier: Apache-2.0
"""Thousands of calls with arrays: neither memory nor descriptors grow, on either side, and nothing is mixed up."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from segment_counts import until_given_back
from storm import SECONDS, TIRELESS, Storm, seconds, torment

MB = 1 << 20

pytestmark = [pytest.mark.stress, pytest.mark.timeout(SECONDS + 300)]


def private_memory() -> int:
    """Bytes that this process has to itself, shared memory not counted."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.partition("Anonymous:")[2].split()[0]) * 1024


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_thousand_calls_of_10_mb(service: Any) -> None:
    """At most three segments on either side, for arguments as for results."""
    array = np.random.default_rng(1).integers(0, 255, 10 * MB, "u1")
    calls = max(50, round(SECONDS / 30 * 1000))
    before = atoll.memory().created
    for number in range(calls):
        array[:2] = number % 251, number % 241
        result = service.echo(array)
        assert (result[0], result[1], result[-1]) == (number % 251, number % 241, array[-1])
        del result
    here, there = atoll.memory(), service.figures()
    assert here.segments <= 3
    assert here.created - before <= 3
    assert there["segments"] <= 3
    assert there["created"] <= 3


def test_ten_thousand_calls_of_many_sizes(service: Any) -> None:
    """What each side has grows in the beginning only."""
    choose = random.Random(1)
    source = np.random.default_rng(1).integers(0, 255, 4 * MB, "u1")
    kept: list[Any] = [None] * 5

    def calls(count: int) -> None:
        for number in range(count):
            size = round(2 ** choose.uniform(0, 22)) if number % 3 else choose.choice([100, 70_000, 300_000])
            start = choose.randrange(4 * MB - size + 1)
            array = source[start : start + size]
            if number % 7 == 0:
                array = atoll.asarray(array)
            result = service.echo(array)
            assert result.size == size
            assert zlib.crc32(result[:100]) == zlib.crc32(array[:100])
            if number % 11 == 0:
                kept[number % 5] = result
            del array, result

    count = max(500, round(SECONDS / 30 * 10_000))
    calls(count // 4)
    figures = []
    for _ in range(2):
        calls(count * 3 // 8)
        gc.collect()
        figures.append((private_memory(), service.resident(), descriptors(), service.descriptors()))
    (here, there, files, their_files), (here_then, there_then, files_then, their_files_then) = figures
    assert here_then - here < 16 * MB
    assert there_then - there < 16 * MB
    # Segments are kept to be used again, of as many sizes as there are classes of sizes.
    assert files_then - files < 40
    assert their_files_then - their_files < 40
    kept.clear()
    until_given_back()
    atoll.trim_memory()
    assert atoll.memory().bytes == 0


def test_threads_mix_nothing_up(serve: Callable[..., Any]) -> None:
    """Each passes, keeps, drops and is returned arrays of many sizes, and looks at every byte of them."""
    service, other = serve(workers=2, concurrency=2), serve(workers=1)
    held: dict[int, list[tuple[Any, int]]] = {}
    source = np.random.default_rng(1).integers(0, 255, 8 * MB, "u1")

    def ask(question: int) -> bool:
        choose = random.Random(question)
        mine = held.setdefault(threading.get_ident(), [])
        size = choose.choice([50, 33_000, 70_000, 263_000, MB, 3 * MB])
        start = choose.randrange(4 * MB)
        array = source[start : start + size]
        expected = zlib.crc32(array)
        how = choose.randrange(7)
        if how == 0:
            return bool(service.checksum(array) == expected)
        if how == 1:
            return bool(service.scribble(atoll.asarray(array), question % 256) == expected)
        if how == 2:
            mine.append((service.echo(array), expected))
        elif how == 3:
            mine.append((other.echo(service.echo(array)), expected))
        elif how == 4:
            out = atoll.empty(size, "u1")
            service.invert(array, out=out)
            mine.append((out, zlib.crc32(255 - array)))
        elif how == 5 and mine:
            kept, its = choose.choice(mine)
            return bool(other.checksum(kept) == its)
        elif mine:
            mine.append((service.echo([one for one, _ in mine[:3]])[0], mine[0][1]))
        while len(mine) > 6:
            mine.pop(choose.randrange(len(mine)))
        return all(zlib.crc32(np.ascontiguousarray(one)) == its for one, its in mine)

    pause = threading.Event()
    with Storm(ask, expected=lambda question: True, callers=8, allowed=()).around():
        pause.wait(seconds(20))
    held.clear()
    until_given_back()


def test_workers_are_killed_with_arrays_on_their_way(serve: Callable[..., Any]) -> None:
    """Each call has the right answer, or says that its worker died; what was received stays right."""
    service = serve(workers=3, **TIRELESS)
    source = np.random.default_rng(1).integers(0, 255, 4 * MB, "u1")
    held: list[tuple[Any, int]] = []
    lock = threading.Lock()

    def ask(question: int) -> bool:
        size = (50, 70_000, 300_000, MB)[question % 4]
        start = question * 997 % (3 * MB)
        array = source[start : start + size]
        if question % 5 == 0:
            array = atoll.asarray(array)
        if question % 3 == 0:
            out = np.empty(size, "u1")
            service.invert(array, out=out)
            return np.array_equal(out, 255 - array)
        if question % 11 == 0:
            return all(one.size == size for one in service.stream(size, 5))
        result = service.echo(array)
        with lock:
            held.append((result, zlib.crc32(array)))
            del held[:-10]
        return np.array_equal(result, array)

    with Storm(ask, expected=lambda question: True, callers=4).around() as storm:
        torment(service, signal.SIGKILL, seconds(10), every=0.1)
    assert storm.raised["WorkerDied"] > 0
    assert all(zlib.crc32(result) == expected for result, expected in held)
    held.clear()
    until_given_back()


def test_a_worker_ends_right_after_it_answered(serve: Callable[..., Any], write: Callable[[str, str], Path]) -> None:
    """What it returned is there all the same, or it is said that it died: never half of it."""
    file = write(
        "dying.py",
        """\
        import os, threading
        import numpy as np
        from atoll_worker import expose

        @expose
        def answer_and_die(size):
            def die():
                os._exit(0)
            threading.Timer(0.0005, die).start()
            return [np.full(size, number, "u1") for number in range(3)]
        """,
    )
    right = died = 0
    deadline = time.monotonic() + seconds(6)
    with atoll.Service(file, workers=2, timeout=60, **TIRELESS) as service:
        for number in itertools.count():
            if time.monotonic() > deadline and number >= 5:
                break
            try:
                result = service.answer_and_die(300_000)
            except atoll.WorkerDied:
                died += 1
                continue
            assert [int(one.sum()) for one in result] == [0, 300_000, 600_000]
            right += 1
    assert right + died == number
    assert died or right
