# SPDX-License-Identifier: Apache-2.0
"""Something runs out: memory, files, the disk for logs, processes. What is hit says so; what is not goes on."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.processes import tree_memory, warden
from conditions import children_of, is_gone, state_of, until, until_gone
from storm import TIRELESS, Storm, check_healthy, seconds

Oracle = Callable[..., atoll.Service]


def answered(question: int) -> tuple[int, bytes]:
    return question, bytes(300_000) if question % 5 == 2 else b""


def calm(service: atoll.Service, workers: int) -> None:
    check_healthy(service, service.answer, workers, answered)


# -- memory --------------------------------------------------------------------------------------------------------


def test_memory_bombs(oracle: Oracle) -> None:
    """Each is found, and named; the calls of the other workers do not notice."""
    service = oracle(workers=2, memory="150MB", **TIRELESS)
    service.start()
    bombs: list[BaseException] = []

    def ask(question: int) -> Any:
        if question >> 32 == 0:
            try:
                service.die(question, "memory")
            except (atoll.WorkerOutOfMemory, atoll.RemoteError) as error:
                bombs.append(error)
        return service.answer(question)

    with Storm(ask, expected=answered, callers=3).around():
        until(lambda: len(bombs) >= 3, 60)
    # By a limit of the address space, Python itself may raise.
    assert all(isinstance(error, (atoll.WorkerOutOfMemory, MemoryError)) for error in bombs)
    # Then its answer is here before it has let go of what it holds, for which it may still be killed.
    until(lambda: all(tree_memory(one.pid) < 100_000_000 for one in service._pool.supervisor.workers))
    warden().run(lambda: None)  # whoever was looked at just then
    until(lambda: not any(one.process and one.process.out_of_memory for one in service._pool.supervisor.workers))
    calm(service, 2)


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_worker_without_a_file_left(oracle: Oracle) -> None:
    """It has its connections already, so it goes on answering; what it cannot do is its own."""
    service = oracle(workers=1, open_files=64, **TIRELESS)
    count, number = service.exhaust()
    assert 0 < count < 64
    assert number == errno.EMFILE
    (worker,) = service._pool.workers
    for _ in range(3):
        asked = time.monotonic()
        warden().run(worker.ping)
        until(lambda asked=asked: (worker.pong_at or 0.0) >= asked)
    for question in range(50):
        assert service.answer(question) == answered(question)
    assert service.ask_back(1, lambda one: one) == 15
    assert list(service.count(3, 100)) == [*range(3, 103)]
    with pytest.raises(atoll.RemoteError) as caught:
        service.breed(1, False)
    assert isinstance(caught.value, OSError)
    service.let_go()
    calm(service, 1)


@pytest.fixture
def few_files() -> Iterator[Callable[[int], None]]:
    """Lets this process have so many more files open than it has now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    holes: list[int] = []

    def limit(more: int) -> None:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        while (number := os.open(os.devnull, os.O_RDONLY)) < highest:
            holes.append(number)
        os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for number in holes:
        os.close(number)


@pytest.mark.parametrize("more", range(16))
def test_a_host_without_a_file_left(oracle: Oracle, few_files: Callable[[int], None], more: int) -> None:
    """A worker that it has answers; one that it cannot start is refused, and nothing of the attempt is left."""
    service = oracle(workers=1, **TIRELESS)
    pid = service.whoami()
    another = atoll.function(lambda: 1)  # before: its source is read from a file
    few_files(more)
    assert service.whoami() == pid
    os.kill(pid, signal.SIGKILL)
    until_gone(pid)
    try:
        assert another() == 1
    except (atoll.WorkerStartError, atoll.WorkerDied):
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        another.close()
    # There are files again, and so there is a worker again. Who calls before the end of the old one is known is told.
    until(lambda: all(one.pid != pid for one in service.status().workers))
    calm(service, 1)


# -- logs ----------------------------------------------------------------------------------------------------------


class Broken(logging.Handler):
    """A handler that cannot write, and lets everybody know."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(params=["a handler that raises", "a full device"])
def full(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What workers print and log has no place to go to."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # a full device says so on standard error, each time
    handler: logging.Handler = Broken()
    if request.param == "a full device":
        handler = logging.FileHandler("/dev/full")
    loggers = [logging.getLogger("atoll.worker"), logging.getLogger("atoll.pool")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)
    with contextlib.suppress(OSError):  # it still has something to write
        handler.close()


def test_a_full_disk_for_logs(oracle: Oracle, full: None) -> None:
    """Workers print, log, die and are replaced as ever; nothing stops."""
    service = oracle(workers=2, **TIRELESS)
    service.start()

    def ask(question: int) -> Any:
        if question % 20 == 0:
            return service.die(question, "exit")
        if question % 20 == 1:
            return service.flood(question, 50), b""
        return service.answer(question)

    def expected(question: int) -> Any:
        return (question, b"") if question % 20 == 1 else answered(question)

    with Storm(ask, expected=expected, callers=4).around() as storm:
        until(lambda: storm.raised["WorkerDied"] > 20, 60)
    calm(service, 2)


def test_floods_of_output(oracle: Oracle) -> None:
    """Workers print without end; the calls go on, and whoever prints waits rather than filling the memory."""
    service = oracle(workers=2, **TIRELESS)
    service.start()

    def ask(question: int) -> Any:
        return (service.flood(question, 2000), b"") if question >> 32 < 2 else service.answer(question)

    def expected(question: int) -> Any:
        return (question, b"") if question >> 32 < 2 else answered(question)

    with Storm(ask, expected=expected, allowed=()).around():
        threading.Event().wait(seconds(5))
    calm(service, 2)


# -- processes -----------------------------------------------------------------------------------------------------


def descendants_of(pid: int) -> list[int]:
    """All that a process started, and what that started."""
    found = []
    for child in children_of(pid):
        found += [child, *descendants_of(child)]
    return found


def sleeps(pid: int) -> bool:
    """Whether it is the program that sleeps, and not a shell that is about to start it."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    except OSError:
        return False


@pytest.mark.parametrize("ending", ["killed", "died", "closed", "deadline", "deadline, in sessions of their own"])
def test_a_fork_bomb(oracle: Oracle, ending: str) -> None:
    """50 grandchildren with children, deaf to polite signals: gone with their worker, however it ends."""
    service = oracle(workers=1, **TIRELESS)
    pid = service.whoami()
    service.breed(50, "sessions" in ending)
    # All of them: what one of them started while it is ended would be nobody's.
    born = until(lambda: (found := descendants_of(pid)) and sum(map(sleeps, found)) == 100 and found)
    assert not any(is_gone(one) for one in born)
    if ending == "killed":
        os.kill(pid, signal.SIGKILL)
    elif ending == "died":
        with pytest.raises(atoll.WorkerDied):
            service.die(1, "segfault")
    elif ending == "closed":
        service.close()
    else:
        # From here: one that gets no processor before the deadline would hear of that before it stopped itself.
        os.kill(pid, signal.SIGSTOP)
        until(lambda: state_of(pid) == "T")
        with pytest.raises(atoll.CallTimeout):
            service.function("die").options(timeout=0.2)(1, "stop")
    until_gone(pid, *born)
    if ending != "closed":
        calm(service, 1)
