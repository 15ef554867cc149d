# SPDX-License-Identifier: Apache-2.0
"""Whatever a worker prints, in whichever way, harms no call, and arrives in ``logging`` line by line."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import atoll
from atoll.processes.output import Stream, output_reader
from conditions import WITHIN, until

Write = Callable[[str, str], object]

# What is said at the very end comes from a worker that is given the time for it.
pytestmark = pytest.mark.usefixtures("in_order")


def says(code: str) -> int | None:
    """Run ``code`` in a worker, check that calls go on, and close it; returns the worker's process id."""

    @atoll.function(name="speaker")
    def run(code: str) -> int:
        exec(code, {})
        return len(code)

    assert run(code) == len(code)
    pid = run.pid
    assert run("pass") == 4
    assert run.pid == pid
    run.close()
    return pid


def test_python_lines_arrive_with_level_pid_and_stream(printed) -> None:  # type: ignore[no-untyped-def]
    pid = says("import sys\nprint('to stdout')\nprint('to stderr', file=sys.stderr)\nprint('two\\nlines')")
    until(lambda: len(printed.records) == 4)
    assert printed.lines("stdout") == ["to stdout", "two", "lines"]
    assert printed.lines("stderr") == ["to stderr"]
    for record in printed.records:
        assert record.name == "atoll.worker.speaker"
        assert record.worker_pid == pid
        assert record.service == "speaker"
        assert record.levelno == {"stdout": logging.INFO, "stderr": logging.WARNING}[record.stream]


WAYS = {
    "C printf": "import ctypes; ctypes.CDLL(None).printf(b'line\\n')",
    "os.write": "import os; os.write(1, b'line\\n')",
    "a child process": "import subprocess; subprocess.run(['echo', 'line'])",
    "a shell": "import os; os.system('echo line')",
    "the stream's buffer": "import sys; sys.stdout.buffer.write(b'line\\n'); sys.stdout.buffer.flush()",
    "sys.__stdout__": "import sys; print('line', file=sys.__stdout__)",
    "a duplicated descriptor": "import os; f = os.fdopen(os.dup(1), 'w'); print('line', file=f); f.close()",
    "no newline at the end": "print('line', end='')",
    "carriage return and newline": "import os; os.write(1, b'line\\r\\n')",
    "an atexit handler": "import atexit; atexit.register(print, 'line')",
    "a thread": "import threading; t = threading.Thread(target=print, args=('line',)); t.start(); t.join()",
    "a forked child": "import os\nif os.fork() == 0:\n os.write(1, b'line\\n'); os._exit(0)\nos.wait()",
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_print(printed, way: str) -> None:  # type: ignore[no-untyped-def]
    says(WAYS[way])
    until(lambda: printed.lines("stdout") == ["line"], what=f"{printed.lines()}")


def test_c_output_arrives_while_the_worker_is_idle(printed) -> None:  # type: ignore[no-untyped-def]
    """C's own buffer is flushed a moment after a call, not only at the end."""

    @atoll.function
    def speak() -> None:
        import ctypes

        ctypes.CDLL(None).printf(b"buffered in C\n")

    speak()
    until(lambda: printed.lines() == ["buffered in C"])
    speak()
    until(lambda: printed.lines() == ["buffered in C"] * 2)


def test_an_interactive_read_gets_nothing() -> None:
    @atoll.function
    def read() -> tuple[str, bool]:
        import sys

        return sys.stdin.read(), sys.stdin.isatty()

    assert read() == ("", False)


def test_very_long_lines_and_binary_garbage(printed) -> None:  # type: ignore[no-untyped-def]
    says("print('x' * 1_000_000)")
    until(lambda: sum(map(len, printed.lines())) == 1_000_000)
    assert max(map(len, printed.lines())) <= 1 << 17
    printed.records.clear()
    says("import os; os.write(1, bytes(range(256)) + b'\\n')")
    until(lambda: len(printed.records) == 2)
    assert r"\xff" in printed.lines()[1]
    printed.records.clear()
    says("print('\\udcff \\N{SNOWMAN}')")
    until(lambda: len(printed.records) == 1)
    assert "☃" in printed.lines()[0]


def test_closed_streams() -> None:
    says("import sys; sys.stdout.close(); sys.stderr.close()")
    says("import os; os.close(1); os.close(2)")
    says("import sys; sys.stdout = sys.stderr = None")


def test_a_flood_during_calls_harms_neither_calls_nor_lines(printed) -> None:  # type: ignore[no-untyped-def]
    @atoll.function(name="flood")
    def flood(first: int, count: int) -> int:
        for number in range(first, first + count):
            print("line", number)
        return first + count

    total = 100_000
    at = 0
    while at < total:
        assert flood(at, 5000) == at + 5000
        at += 5000
    until(lambda: len(printed.records) == total, 60)
    assert printed.lines() == [f"line {number}" for number in range(total)]


def test_a_flood_from_a_thread_while_calls_are_made(printed) -> None:  # type: ignore[no-untyped-def]
    @atoll.function
    def begin(count: int) -> None:
        import sys
        import threading

        def run() -> None:
            for number in range(count):
                print(number, file=sys.stderr)

        threading.Thread(target=run, daemon=True).start()

    @atoll.function
    def other(x: int) -> int:
        return x

    begin(5000)
    assert [other(number) for number in range(500)] == list(range(500))
    until(lambda: len(printed.lines("stderr")) == 5000, 60)
    assert printed.lines("stderr") == [str(number) for number in range(5000)]


@contextmanager
def handler(emit: Callable[[logging.LogRecord], None], name: str | None = "atoll.worker") -> Iterator[None]:
    """A log handler of a logger for a while."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            emit(record)

    added = Handler(logging.DEBUG)
    logger = logging.getLogger(name)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(added)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(added)
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.mark.parametrize("name", ["atoll.worker", None])
def test_a_log_handler_that_raises_loses_no_later_line(name: str | None) -> None:
    seen: list[str] = []

    def emit(record: logging.LogRecord) -> None:
        if record.name == "atoll.worker.say":
            seen.append(record.getMessage())
        raise RuntimeError("a broken handler")

    @atoll.function
    def say(text: str) -> str:
        print(text)
        return text

    with handler(emit, name):
        for number in range(5):
            assert say(f"{number}\nand {number}") == f"{number}\nand {number}"
        expected = [word for number in range(5) for word in (str(number), f"and {number}")]
        until(lambda: seen == expected, what=f"{seen}")


def test_a_log_handler_that_is_slow_holds_up_no_call_of_another_service() -> None:
    go = threading.Event()
    seen: list[str] = []

    def emit(record: logging.LogRecord) -> None:
        go.wait(600)
        seen.append(record.getMessage())

    @atoll.function
    def say(text: str) -> str:
        print(text)
        return text

    @atoll.function
    def other(x: int) -> int:
        return x + 1

    with handler(emit):
        try:
            assert [say(str(number)) for number in range(20)] == [str(number) for number in range(20)]
            assert [other(number) for number in range(100)] == list(range(1, 101))
            assert seen == []
        finally:
            go.set()
        until(lambda: len(seen) == 20)


def test_what_is_left_in_a_pipe_is_read_before_it_is_dropped() -> None:
    """However late the thread comes to it: log handlers may keep it."""
    go = threading.Event()
    read, write = os.pipe()
    stream = Stream(read, "late", 1, "stdout")
    output_reader().add(stream)
    output_reader().always(lambda: go.wait(WITHIN) and None)
    os.write(write, b"one line\nand one without an end")
    output_reader().drop(stream)  # as when a process that outlives the worker may hold the pipe
    go.set()
    assert stream.ended.wait(WITHIN)
    os.close(write)
    assert stream.last_lines == ["one line", "and one without an end"]


def test_a_death_shows_the_last_lines_although_the_log_is_off() -> None:
    logger = logging.getLogger("atoll.worker")
    logger.setLevel(logging.CRITICAL)

    @atoll.function
    def die() -> None:
        import os
        import sys

        for number in range(100):
            print("line", number, file=sys.stderr)
        os._exit(1)

    try:
        with pytest.raises(atoll.WorkerDied) as caught:
            die()
    finally:
        logger.setLevel(logging.NOTSET)
    assert caught.value.stderr == tuple(f"line {number}" for number in range(60, 100))
