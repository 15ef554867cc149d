# SPDX-License-Identifier: Apache-2.0
"""For the chaos tests: a service that answers with the question, in all the ways that an answer can take."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll

ORACLE = """\
    import asyncio, ctypes, os, signal, subprocess, sys, threading, time
    from atoll_worker import expose, host, progress

    @expose
    def answer(question):
        "At once, or after a while; small enough for the fast lane, or too large for it."
        if question % 5 == 1:
            time.sleep(0.002)
        if question % 5 == 2:
            return question, bytes(300_000)
        return question, b""

    @expose(idempotent=True)
    def answer_again(question):
        time.sleep(0.001)
        return question

    @expose
    async def answer_later(question):
        await asyncio.sleep(0.001)
        return question

    @expose
    def ask_back(question, function):
        "The sum of what the caller's function says of so many numbers."
        return sum(function(question + number) for number in range(5))

    @expose
    def count(question, items):
        for number in range(items):
            yield question + number

    @expose
    def total(items):
        return sum(items)

    @expose
    def sleep(question, seconds, begun=None):
        "Having made the file of this name, if there is one."
        if begun is not None:
            open(begun, "w").close()
        time.sleep(seconds)
        return question

    @expose
    def spin(question, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        return question

    @expose
    def die(question, how):
        if how == "exit":
            os._exit(7)
        elif how == "segfault":
            ctypes.string_at(0)
        elif how == "abort":
            os.abort()
        elif how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif how == "memory":
            held = []
            while True:
                held.append(bytearray(os.urandom(1) * 8_000_000))
        return question

    @expose
    def exhaust():
        "Holds every file that may be open; returns how many that were."
        global held
        held = []
        try:
            while True:
                held.append(os.dup(2))
        except OSError as error:
            return len(held), error.errno

    @expose
    def let_go():
        for one in held:
            os.close(one)
        held.clear()

    @expose
    def flood(question, lines):
        for number in range(lines):
            print("out", question, number)
            print("err", question, number, file=sys.stderr)
        sys.stdout.flush()
        return question

    @expose
    def breed(count, new_session):
        "Children with children, deaf to polite signals."
        text = "trap '' HUP TERM INT; sleep 600 & sleep 600"
        return [subprocess.Popen(["sh", "-c", text], start_new_session=new_session).pid for _ in range(count)]

    @expose
    def whoami():
        return os.getpid()
"""


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Callable[..., atoll.Service]]:
    """Makes services that answer; they are closed after the test."""
    file = tmp_path / "oracle.py"
    file.write_text(textwrap.dedent(ORACLE))
    made: list[atoll.Service] = []

    def make(**options: Any) -> atoll.Service:
        service = atoll.Service(file, **options)
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()
