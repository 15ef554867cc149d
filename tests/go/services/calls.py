# SPDX-License-Identifier: Apache-2.0
"""What the Go client's tests, and those of calls in JSON, call."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from atoll_worker import cancelled, expose, host

_ended: list[str] = []
_noted: list[Any] = []


def _begins(mark: str | None) -> None:
    """Let whoever looks at the file ``mark`` know that a call has begun: one more line for each."""
    if mark is not None:
        with open(mark, "a") as file:
            file.write("began\n")


@expose
def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


@expose
def echo(value: Any = None, **named: Any) -> Any:
    """What it was given."""
    return named or value


@expose
async def later(value: Any, seconds: float = 0.0) -> Any:
    """What it was given, from a coroutine."""
    await asyncio.sleep(seconds)
    return value


@expose
def size(text: str) -> int:
    """How long a text is."""
    return len(text)


@expose
def fail(message: str) -> None:
    """Raises."""
    raise ValueError(message)


@expose
def not_a_number() -> float:
    """What JSON does not have."""
    return float("nan")


@expose
def pid() -> int:
    """Of the worker."""
    return os.getpid()


@expose
def start_child() -> list[int]:
    """Process ids of the worker, and of a child that it leaves to itself."""
    return [os.getpid(), subprocess.Popen(["sleep", "600"]).pid]


@expose
def die(code: int = 3) -> None:
    """Ends the worker."""
    print("last words", file=sys.stderr, flush=True)
    os._exit(code)


@expose
def sleep(seconds: float, mark: str | None = None) -> str:
    """Sleeps, and notes how it ended. ``mark``: a file that is there from then on."""
    try:
        _begins(mark)
        time.sleep(seconds)
    except BaseException as error:
        _ended.append(type(error).__name__)
        raise
    return "slept"


@expose
def stubborn(seconds: float, mark: str | None = None) -> None:
    """Does not let itself be cancelled. ``mark``: a file that is there from then on."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            _begins(mark)
            mark = None
            time.sleep(0.01)
        except BaseException:
            continue


@expose
def until_cancelled(mark: str | None = None) -> str:
    """Ends when it is told to, or its deadline has passed. ``mark``: a file that is there once it has begun."""
    _begins(mark)
    while not cancelled():
        time.sleep(0.001)
    _ended.append("cooperative")
    return "told"


@expose
def ended() -> list[str]:
    """How calls of this worker ended that did not come to their own end."""
    return _ended


@expose
def note(value: Any) -> None:
    """Keeps it, after what was kept before."""
    _noted.append(value)


@expose
def noted() -> list[Any]:
    """What was kept."""
    return _noted


@expose
def count(to: int, fail_at: int = -1) -> Iterator[int]:
    """Counts; notes that it was closed."""
    try:
        for number in range(to):
            if number == fail_at:
                raise ValueError(f"no {number}")
            yield number
    finally:
        _ended.append("closed")


@expose
def count_patiently(to: int, seconds: float) -> Iterator[int]:
    """Counts, with pauses; notes that it was closed."""
    try:
        for number in range(to):
            time.sleep(seconds)
            yield number
    finally:
        _ended.append("closed")


@expose
async def count_slowly(to: int) -> AsyncIterator[int]:
    """Counts, asynchronously."""
    for number in range(to):
        await asyncio.sleep(0)
        yield number


@expose
def call_back() -> Any:
    """Cannot be done for a caller who speaks JSON."""
    return host.anything()


@expose
def log(text: str) -> None:
    """Says so by ``logging``, and prints it."""
    logging.getLogger("calls").warning(text)
    print(text, flush=True)
