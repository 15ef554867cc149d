# SPDX-License-Identifier: Apache-2.0
"""Log records of a worker are records here: level, logger, time, thread, call; the last ones survive its death."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll.pool.policy import Policy
from conditions import until

Write = Callable[[str, str], Path]

LOGGING = """\
import logging, os, sys, threading, time
from atoll_worker import Service, expose, log

class Talking(Service):
    def setup(self):
        log.warning("set up")

    @expose
    def say(self, level, text, logger=None):
        logging.getLogger(logger).log(level, text)
        return time.time(), threading.current_thread().name

    @expose
    def write(self, text):
        print(text)

    @expose
    def say_and_wait(self, text, folder):
        log.warning("%s begins", text)
        open(os.path.join(folder, text), "w").close()
        while len(os.listdir(folder)) < 2:
            time.sleep(0.002)
        log.warning("%s ends", text)

    @expose
    def configure_and_say(self, text):
        logging.basicConfig(level=logging.DEBUG, force=True)
        logging.getLogger("configured").debug(text)
        print("printed", flush=True)

    @expose
    def fail_loudly(self):
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("it failed")

    @expose
    def die(self):
        log.error("the disk is full")
        logging.getLogger("store").critical("giving up")
        os._exit(9)

    @expose
    def later(self):
        def run():
            log.warning("from a thread of its own")
        thread = threading.Thread(target=run, name="helper")
        thread.start()
        thread.join()

    def teardown(self):
        log.warning("torn down")
"""


@pytest.fixture
def file(write: Write) -> Path:
    return write("talking.py", LOGGING)


@pytest.fixture
def heard() -> Iterator[list[Any]]:
    """Every record of workers from DEBUG on, as the program's handlers get it."""
    records: list[Any] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("atoll.worker")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def the_one(records: list[Any], text: str) -> Any:
    """The record of this message, of which there is one."""
    until(lambda: any(record.getMessage() == text for record in records.copy()), what=text)
    (found,) = [record for record in records.copy() if record.getMessage() == text]
    return found


@pytest.mark.usefixtures("in_order")
def test_level_logger_time_thread_process_and_place(file: Path, heard: list[Any]) -> None:
    with atoll.Service(file) as service:
        for level, name in ((logging.DEBUG, None), (logging.INFO, "models.sd"), (35, "x"), (logging.ERROR, None)):
            before = time.time()
            said_at, thread = service.say(level, f"at {level}", name)
            record = the_one(heard, f"at {level}")
            assert record.name == "atoll.worker.talking" + (f".{name}" if name else "")
            assert (record.levelno, record.threadName, record.worker_thread) == (level, thread, thread)
            assert (record.process, record.worker_pid, record.service) == (service.pid, service.pid, "talking")
            assert before <= record.created <= said_at  # when it was said, not when it arrived
            assert record.pathname == str(file)
            assert record.funcName == "say"
            assert record.call_id > 0
        assert the_one(heard, "set up").call_id == 0
    assert the_one(heard, "torn down").call_id == 0


def test_each_call_has_a_number_of_its_own(file: Path, heard: list[Any]) -> None:
    with atoll.Service(file) as service:
        service.say(logging.WARNING, "first")
        service.say(logging.WARNING, "second")
        service.later()
        numbers = [the_one(heard, text).call_id for text in ("first", "second", "from a thread of its own")]
        assert len(set(numbers)) == 3
        assert the_one(heard, "from a thread of its own").worker_thread == "helper"


def test_calls_side_by_side_are_told_apart(file: Path, heard: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "together"
    folder.mkdir()
    with atoll.Service(file, concurrency=2) as service:
        for call in [service.say_and_wait.submit(text, str(folder)) for text in ("one", "two")]:
            call.result(30)
        numbers = {
            text: {the_one(heard, f"{text} begins").call_id, the_one(heard, f"{text} ends").call_id}
            for text in ("one", "two")
        }
    assert [len(one) for one in numbers.values()] == [1, 1]
    assert numbers["one"] != numbers["two"]


def test_an_exception_keeps_its_traceback(file: Path, heard: list[Any]) -> None:
    with atoll.Service(file) as service:
        service.fail_loudly()
        record = the_one(heard, "it failed")
    text = logging.Formatter("%(levelname)s %(message)s").format(record)
    assert text.startswith("ERROR it failed\nTraceback (most recent call last):")
    assert text.endswith("ZeroDivisionError: division by zero")


@pytest.mark.usefixtures("known")
def test_the_last_records_survive_death(file: Path, heard: list[Any]) -> None:
    """They are in the error, and in the log, although the worker ended at once."""
    with atoll.Service(file) as service:
        with pytest.raises(atoll.WorkerDied) as caught:
            service.die()
        assert caught.value.stderr[-2:] == ("ERROR the disk is full", "CRITICAL store: giving up")
        assert the_one(heard, "giving up").levelname == "CRITICAL"
        assert the_one(heard, "the disk is full").worker_pid == caught.value.pid


def test_they_survive_a_kill_from_outside(file: Path, heard: list[Any]) -> None:
    with atoll.Service(file) as service:
        service.say(logging.WARNING, "still here")
        pid = service.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert the_one(heard, "still here").worker_pid == pid


def test_a_service_that_configures_logging_itself_is_heard_once(file: Path, heard: list[Any]) -> None:
    """``basicConfig`` there takes effect, and prints nothing that comes as a record."""
    with atoll.Service(file) as service:
        service.configure_and_say("configured it")
        assert the_one(heard, "configured it").name == "atoll.worker.talking.configured"
        the_one(heard, "printed")
    assert sum("configured it" in record.getMessage() for record in heard) == 1


def test_a_program_that_configures_logging_sees_workers_as_its_own(file: Path, tmp_path: Path) -> None:
    """The usual ``basicConfig`` of a program: WARNING unless it says otherwise, in its own format."""
    from conditions import run_python

    script = tmp_path / "program.py"
    script.write_text(
        "import logging, sys, atoll\n"
        "logging.basicConfig(level=logging.INFO, format='%(levelname)s|%(name)s|%(message)s', stream=sys.stdout)\n"
        f"with atoll.Service({str(file)!r}) as service:\n"
        "    service.say(20, 'shown')\n    service.say(10, 'not shown')\n    service.say(40, 'bad', 'deep.down')\n"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "INFO|atoll.worker.talking|shown" in lines
    assert "ERROR|atoll.worker.talking.deep.down|bad" in lines
    assert "not shown" not in done.stdout
    assert done.stderr == ""


def test_what_is_said_last_is_logged_before_the_program_ends(file: Path, tmp_path: Path) -> None:
    """Also where its handlers are slow, and printed lines wait in a pipe behind records."""
    from conditions import run_python

    script = tmp_path / "program.py"
    script.write_text(
        "import logging, sys, time, atoll\n"
        "class Slow(logging.StreamHandler):\n"
        "    def emit(self, record):\n        time.sleep(0.05)\n        super().emit(record)\n"
        "logging.basicConfig(level=logging.INFO, handlers=[Slow(sys.stdout)], format='%(message)s')\n"
        f"with atoll.Service({str(file)!r}) as service:\n"
        "    for number in range(3):\n        service.say(20, f'said {number}')\n"
        "        service.write(f'printed {number}')\n"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("said")] == [f"said {number}" for number in range(3)]
    assert [line for line in lines if line.startswith("printed")] == [f"printed {number}" for number in range(3)]


def test_another_level_reaches_running_workers(file: Path, heard: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next look at its health: what is not wanted any more is not even sent, what is from now on comes."""
    # However late it answers: a worker that gets no processor for a second is not what this is about.
    monkeypatch.setattr(Policy, "_judge", lambda self, now, actions: None)
    logger = logging.getLogger("atoll.worker.talking")
    logger.setLevel(logging.WARNING)
    try:
        with atoll.Service(file, health_interval=0.5) as service:
            service.say(logging.DEBUG, "too early")
            logger.setLevel(logging.DEBUG)

            def arrives() -> bool:
                service.say(logging.DEBUG, "wanted by now")
                return any(record.getMessage() == "wanted by now" for record in heard.copy())

            until(arrives)
            assert not any(record.getMessage() == "too early" for record in heard.copy())
    finally:
        logger.setLevel(logging.NOTSET)


def test_records_of_many_threads_of_a_busy_worker_all_arrive_in_order(file: Path, heard: list[Any]) -> None:
    with atoll.Service(file, concurrency=4) as service:

        def say(name: str) -> None:
            for number in range(50):
                service.say(logging.INFO, f"{name} {number}")

        threads = [threading.Thread(target=say, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        until(lambda: sum(record.levelno == logging.INFO for record in heard.copy()) >= 200)
    for name in "abcd":
        numbers = [int(text[2:]) for record in heard if (text := record.getMessage()).startswith(f"{name} ")]
        assert numbers == list(range(50))


def test_a_handler_that_is_slow_holds_up_no_call(file: Path) -> None:
    handler = logging.Handler()
    gate = threading.Event()
    entered = threading.Event()
    left: list[logging.LogRecord] = []

    def emit(record: logging.LogRecord) -> None:
        entered.set()
        gate.wait(60)
        left.append(record)

    handler.emit = emit  # type: ignore[method-assign]
    logger = logging.getLogger("atoll.worker")
    logger.addHandler(handler)
    try:
        with atoll.Service(file) as service:
            for number in range(100):
                service.say(logging.WARNING, f"slow {number}")
            until(entered.is_set)
            assert not left
            gate.set()
    finally:
        gate.set()
        logger.removeHandler(handler)
