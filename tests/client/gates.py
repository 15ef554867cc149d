# SPDX-License-Identifier: Apache-2.0
"""A service for the tests of pools, whose calls last until a test opens the gate, and threads that keep calling it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conditions import WITHIN

GATED = '''\
import os, sys, time
from pathlib import Path
from atoll_worker import Service, expose

folder = Path(os.environ["FOLDER"])

def note(word):
    with open(folder / "notes", "a") as file:
        file.write(f"{word} {os.getpid()}\\n")

class Gated(Service):
    def setup(self):
        self.kept = []
        note("ready")

    @expose
    def hold(self, value=None):
        """Returns once the gate is open."""
        (folder / f"held-{os.getpid()}-{time.monotonic_ns()}").touch()
        while not (folder / "gate").exists():
            time.sleep(0.002)
        return os.getpid() if value is None else value

    @expose
    def meet(self, count):
        """Returns once so many workers are in it."""
        (folder / f"met-{os.getpid()}").touch()
        while len(list(folder.glob("met-*"))) < count:
            time.sleep(0.002)
        return os.getpid()

    @expose
    def whoami(self):
        return os.getpid()

    @expose
    def echo(self, value):
        return value

    @expose
    def sleep(self, seconds):
        time.sleep(seconds)

    @expose
    def fail(self):
        raise ValueError("no")

    @expose
    def grow(self, size, stay=False):
        self.kept.append(b"\\1" * size)
        while stay:
            time.sleep(0.002)

    @expose
    def burn(self, number):
        """Holds the interpreter lock in C."""
        return os.getpid(), sum(range(number))

    @expose
    def exit(self, code):
        os._exit(code)

    @expose
    def count(self, number):
        for one in range(number):
            yield one, os.getpid()

    def teardown(self):
        note("torn down")
'''


class Gates:
    """What calls of the service wait for.

    Args:
        folder: an empty folder that the service gets as FOLDER.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.file = folder / "gated.py"
        self.file.write_text(GATED)
        self.options = {"name": "gated", "env_vars": {"FOLDER": str(folder)}}

    @property
    def held(self) -> int:
        """How many calls of ``hold`` have begun."""
        return len(list(self.folder.glob("held-*")))

    def open(self) -> None:
        """Let every call of ``hold`` return, those to come too."""
        (self.folder / "gate").touch()

    @property
    def notes(self) -> list[tuple[str, int]]:
        """What workers noted of their lives, in order: what, process id."""
        file = self.folder / "notes"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(word, int(pid)) for word, _, pid in (line.rpartition(" ") for line in lines)]


class Callers:
    """Threads that call a function again and again, until the end of the ``with``."""

    def __init__(self, count: int, function: Callable[[], Any]) -> None:
        self.results: list[Any] = []
        self.errors: list[BaseException] = []
        self._function = function
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="caller") for _ in range(count)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.results.append(self._function())
            except BaseException as error:
                self.errors.append(error)
                self._stop.wait(0.005)  # or refused callers alone would keep the processor busy

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WITHIN)
        assert not any(thread.is_alive() for thread in self._threads), "a caller hangs"
