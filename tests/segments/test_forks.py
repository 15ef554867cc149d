# SPDX-License-Identifier: Apache-2.0
"""A process that holds shared memory forks: both sides keep what they had, and in the end all is given back."""

from __future__ import annotations

import gc
import multiprocessing
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import atoll
from conditions import until
from segment_counts import until_given_back

MB = 1 << 20
Random = Callable[[int], np.ndarray]


class Child:
    """A forked child that checks something once it is told to, and ends."""

    def __init__(self, check: Callable[[], object]) -> None:
        read, self._go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.close(self._go)
                os.read(read, 1)
                check()
                code = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        os.close(read)

    def finish(self) -> None:
        """Let it check, and wait for it."""
        os.close(self._go)
        fd = os.pidfd_open(self.pid)
        ready, _, _ = select.select([fd], [], [], 60)
        os.close(fd)
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        assert ready, "the child hangs"
        assert status == 0, f"the child ended with {status}"


def test_a_child_sees_its_arrays_unchanged(service: Any, random_bytes: Random) -> None:
    """While the parent lets go of them, and passes others of the same size through what memory there is."""
    held = {
        "own": atoll.asarray(random_bytes(MB)),
        "result": service.make(MB, 5),
        "view": service.make(MB, 6)[::3],
    }
    expected = {name: array.copy() for name, array in held.items()}

    def check() -> None:
        for name, array in held.items():
            assert np.array_equal(array, expected[name]), name
        held.clear()
        gc.collect()
        assert atoll.memory().segments == 0

    child = Child(check)
    held.clear()
    gc.collect()
    for seed in range(10):
        array = atoll.empty(MB, "u1")
        array[...] = seed
        assert (service.echo(random_bytes(MB)) >= 0).all()
        service.make(MB, 100 + seed)
    assert atoll.memory().segments >= 1
    del array
    child.finish()
    until_given_back()
    atoll.trim_memory()
    assert atoll.memory().segments == 0
    until(lambda: service.figures()["lent"] == 0)


def test_a_child_uses_services_of_its_own_with_what_it_inherited(
    service: Any, serve: Callable[..., Any], random_bytes: Random
) -> None:
    own: Any = atoll.asarray(random_bytes(MB))
    result = service.make(MB, 5)
    expected = [own.copy(), result.copy()]

    def check() -> None:
        for array, copy in zip((own, result), expected, strict=True):
            assert service.checksum(array) == service.checksum(copy)  # by a worker of the child's own
            assert np.array_equal(service.echo(array), copy)
        out = atoll.empty(MB, "u1")
        service.invert(own, out=out)
        assert np.array_equal(out, 255 - expected[0])
        with serve() as other:
            assert np.array_equal(other.echo(result), expected[1])
        service.close()

    child = Child(check)
    child.finish()
    assert np.array_equal(own, expected[0])
    assert np.array_equal(service.echo(own), expected[0])
    own = result = None
    until_given_back()


def test_what_a_child_writes_is_what_the_parent_has(service: Any, random_bytes: Random) -> None:
    """Memory of ``atoll.empty`` is shared with a child, as its description says; what was borrowed is private."""
    result = service.make(MB, 5)
    expected = result.copy()

    def check() -> None:
        result.flags.writeable = True
        result[...] = 0

    Child(check).finish()
    assert np.array_equal(result, expected)
    assert np.array_equal(service.make(MB, 5), expected)


def test_children_of_children(service: Any, random_bytes: Random) -> None:
    """The parent's memory stays until the last of them has ended."""
    array: Any = atoll.asarray(random_bytes(MB))
    expected = array.copy()
    tell, told = os.pipe()

    def check() -> None:
        os.close(told)
        grandchild = os.fork()
        if not grandchild:
            signal.alarm(60)
            os.read(tell, 1)  # until the first ancestor has written over what it may
            os._exit(0 if np.array_equal(array, expected) else 1)
        _, status = os.waitpid(grandchild, 0)
        assert status == 0

    child = Child(check)
    os.close(tell)
    array = None
    gc.collect()
    other = atoll.asarray(random_bytes(MB))
    assert atoll.memory().segments == 2
    os.close(told)
    child.finish()
    del other
    until(lambda: atoll.memory().recycled == 2)


def test_a_child_that_becomes_another_program(service: Any, random_bytes: Random) -> None:
    """It has the memory no longer, however long it lives."""
    array = atoll.asarray(random_bytes(MB))
    pid = os.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-S", "-c", "import signal; signal.alarm(60); signal.pause()"])
    try:
        del array
        until(lambda: atoll.memory().recycled == 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_many_forks(service: Any, random_bytes: Random) -> None:
    """Nothing is kept of a child that has ended."""
    array, result = atoll.asarray(random_bytes(MB)), service.make(MB, 1)
    service.keep("a", array)
    assert atoll.memory().lent == 1  # what is given back has been looked at
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        Child(lambda: None).finish()
        atoll.memory()
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # somebody else may be reading a file
    service.drop("a")
    del array, result
    until_given_back()


def _sum(array: Any) -> int:
    return int(array.sum())


def test_multiprocessing(service: Any, random_bytes: Random) -> None:
    """Arguments of a forked pool are pickled, and arrays it inherits are there."""
    array: Any = atoll.asarray(random_bytes(MB))
    result = service.make(MB, 1)
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        assert pool.map(_sum, [array, result]) == [array.sum(), result.sum()]
    process = context.Process(target=lambda: os._exit(0 if array.sum() == total else 1))
    total = array.sum()
    process.start()
    process.join(30)
    assert process.exitcode == 0
    process.close()
    array = result = None
    until_given_back()


def test_user_code_forks_in_a_worker(write: Callable[[str, str], Any], random_bytes: Random) -> None:
    file = write(
        "forking.py",
        """\
        import os, gc
        import numpy as np
        from atoll_worker import empty, expose
        from atoll_worker.segments import store

        kept = []

        @expose
        def fork_with(x):
            "A child that has what came, and what is to be returned, until its parent lets it end."
            own = empty(x.shape, x.dtype)
            own[...] = x[::-1]
            expected = x.copy(), own.copy()
            read, write = os.pipe()
            pid = os.fork()
            if not pid:
                os.read(read, 1)
                same = np.array_equal(x, expected[0]) and np.array_equal(own, expected[1])
                del x, own
                gc.collect()
                os._exit(0 if same and not store.figures()["segments"] else 1)
            os.close(read)
            kept.append((pid, write))
            return own

        @expose
        def end_children():
            status = []
            for pid, write in kept:
                os.write(write, b"x")
                os.close(write)
                status.append(os.waitpid(pid, 0)[1])
            kept.clear()
            return status

        @expose
        def echo(x):
            return x

        @expose
        def figures():
            gc.collect()
            return store.figures()
        """,
    )
    with atoll.Service(file, timeout=60) as service:
        array = random_bytes(MB)
        result = service.fork_with(array)
        assert np.array_equal(result, array[::-1])
        del result
        for _ in range(5):
            other = random_bytes(MB)
            assert np.array_equal(service.echo(other), other)
        second = service.fork_with(other)
        assert np.array_equal(second, other[::-1])
        assert service.end_children() == [0, 0]
        del second, other
        until(lambda: (service.figures()["lent"], service.figures()["borrowed"]) == (0, 0))
        until_given_back()


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_child_that_ends_at_once(service: Any, random_bytes: Random, how: str) -> None:
    array = atoll.asarray(random_bytes(MB))
    for _ in range(5):
        pid = os.fork()
        if not pid:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        os.waitpid(pid, 0)
        assert service.checksum(array) is not None
    del array
    until(lambda: atoll.memory().recycled == atoll.memory().segments)
