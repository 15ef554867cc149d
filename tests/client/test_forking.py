# SPDX-License-Identifier: Apache-2.0
"""Functions that fork: the child never answers for the worker, and ends where it leaves the function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import atoll

Write = Callable[[str, str], Path]

SERVICE = """\
import atexit, multiprocessing, os, sys
from atoll_worker import Service, expose

def note(text):
    with open(os.environ["NOTES"], "a") as file:
        file.write(text + "\\n")

class Forking(Service):
    def setup(self):
        atexit.register(note, "atexit")
        if os.environ.get("IN_SETUP") and not os.fork():
            return

    @expose
    def fork(self, how):
        pid = os.fork()
        if pid:
            return pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if how == "return":
            return "the child"
        if how == "unencodable":
            return object()
        if how == "exit":
            sys.exit(7)
        raise ValueError("in the child")

    @expose
    def process(self):
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=queue.put, args=(5,))
        child.start()
        got = queue.get()
        child.join()
        return got, child.exitcode

    @expose
    def pid(self):
        return os.getpid()

    def teardown(self):
        note("teardown")
"""

WAYS = {"return": 0, "unencodable": 0, "exit": 7, "raise": 1}


@pytest.fixture
def service(write: Write, tmp_path: Path) -> atoll.Service:
    return atoll.Service(write("forking.py", SERVICE), env_vars={"NOTES": str(tmp_path / "notes")})


@pytest.mark.usefixtures("in_order")
def test_a_child_that_falls_through_ends(service: atoll.Service, tmp_path: Path) -> None:
    """However it leaves the function: one answer, the worker's, and nothing is torn down but by the worker."""
    with service:
        worker = service.pid
        for how, code in WAYS.items():
            child, status = service.fork(how)
            assert (status, child != worker) == (code, True)
            assert service.function("pid")() == worker
    assert (tmp_path / "notes").read_text() == "teardown\natexit\n"


def test_a_process_of_multiprocessing(service: atoll.Service) -> None:
    """It ends by itself, and works as everywhere."""
    with service:
        assert service.process() == (5, 0)
        assert service.function("pid")() == service.pid


def test_a_child_of_setup(write: Write, tmp_path: Path) -> None:
    """It does not greet the host a second time."""
    options = {"NOTES": str(tmp_path / "notes"), "IN_SETUP": "1"}
    with atoll.Service(write("forking.py", SERVICE), env_vars=options) as service:
        for _ in range(5):
            assert service.function("pid")() == service.pid
