# SPDX-License-Identifier: Apache-2.0
"""What user code logs in a worker is sent once, with what it says, however that code has set ``logging`` up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from atoll.processes.records import WorkerRecord, parse

SOURCES = Path(__file__).resolve().parents[2] / "src"

# What a worker does before it runs user code; what would be sent is written to a file, one line for each record.
PREAMBLE = """\
import sys
sys.path.insert(0, {sources!r})
from atoll_worker import logs
calls = [7]
sent = open({sent!r}, "wb", buffering=0)
def send(call_id, payload):
    sent.write(str(call_id).encode() + b" " + payload.hex().encode() + b"\\n")
{before}
logs.install(send, {level}, lambda: calls[0])
"""


class Outcome(NamedTuple):
    """What came of a script: records with their call ids, its stdout and its stderr."""

    records: list[tuple[int, WorkerRecord]]
    stdout: str
    stderr: str

    @property
    def said(self) -> list[tuple[str, str, str]]:
        return [(record.level_name, record.logger, record.message) for _, record in self.records]


class Script:
    """Runs user code as a worker would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, code: str, level: int = 20, before: str = "", python: str = sys.executable) -> Outcome:
        sent = self._folder / "sent"
        file = self._folder / "script.py"
        preamble = PREAMBLE.format(sources=str(SOURCES), sent=str(sent), before=before, level=level)
        file.write_text(preamble + textwrap.dedent(code))
        done = subprocess.run([python, "-I", str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        records = []
        for line in sent.read_text().splitlines():
            call_id, payload = line.split()
            record = parse(bytes.fromhex(payload))
            assert record is not None, line
            records.append((int(call_id), record))
        return Outcome(records, done.stdout, done.stderr)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def pythons() -> list[str]:
    """Interpreters of the versions that differ most, as far as they are installed."""
    found = [sys.executable]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in ("3.9", "3.10", "3.12", "3.13", "3.14"):
        known = sorted(root.glob(f"{version}.*/bin/python"))
        found += [str(known[-1])] if known else [one for one in [shutil.which(f"python{version}")] if one]
    return found


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("before", ["", "import logging"], ids=["imported later", "imported before"])
def test_a_record_crosses_with_all_it_says(script: Script, python: str, before: str) -> None:
    outcome = script(
        """
        import logging.handlers, threading, time
        began = time.time()
        log = logging.getLogger("models.sd")
        def work():
            try:
                1 / 0
            except ZeroDivisionError:
                log.exception("failed with %s", "zero")
        thread = threading.Thread(target=work, name="loader")
        thread.start(); thread.join()
        calls[0] = 0
        logging.info("at the root")
        log.debug("below")
        print(repr(began), repr(time.time()))
        """,
        before=before,
        python=python,
    )
    (call, failed), (no_call, root) = outcome.records
    assert (call, no_call) == (7, 0)
    assert (failed.level, failed.level_name, failed.logger, failed.message) == (
        40,
        "ERROR",
        "models.sd",
        "failed with zero",
    )
    assert (failed.thread, failed.function) == ("loader", "work")
    assert failed.path.endswith("script.py")
    assert 'log.exception("failed' in Path(failed.path).read_text().splitlines()[failed.line - 1]
    assert failed.exception.startswith("Traceback (most recent call last):")
    assert failed.exception.endswith("ZeroDivisionError: division by zero")
    began, ended = map(float, outcome.stdout.split())
    assert began <= failed.created <= root.created <= ended
    assert (root.level_name, root.logger, root.message, root.exception) == ("INFO", "root", "at the root", "")
    assert outcome.stderr == ""


def test_nothing_is_imported_for_it(script: Script) -> None:
    outcome = script("print(*sys.modules)", before="before = set(sys.modules)")
    assert {"logging", "importlib", "importlib.util", "typing", "threading", "traceback"}.isdisjoint(
        outcome.stdout.split()
    )


def test_logging_is_left_as_if_nothing_had_been_done_to_its_import(script: Script) -> None:
    outcome = script(
        """
        import importlib.util, inspect
        spec = importlib.util.find_spec("logging")  # somebody only looks
        assert spec.loader.get_source("logging").startswith("# Copyright")
        import logging
        print(len(sys.meta_path) == before, type(logging.__loader__).__name__, type(logging.__spec__.loader).__name__)
        assert "class Logger" in inspect.getsource(logging)
        assert logging.getLogger().handlers == []
        logging.warning("x")
        """,
        before="before = len(sys.meta_path)",
    )
    assert outcome.stdout.split() == ["True", "SourceFileLoader", "SourceFileLoader"]
    assert outcome.said == [("WARNING", "root", "x")]


@pytest.mark.parametrize(
    ("host", "set_up", "expected"),
    [
        (30, "", ["WARNING"]),
        (20, "", ["INFO", "WARNING"]),
        (10, "", ["DEBUG", "INFO", "WARNING"]),
        (50, "", []),
        (10, "logging.basicConfig(level=logging.WARNING)", ["WARNING"]),
        (30, "logging.basicConfig(level=logging.DEBUG)", ["WARNING"]),
        (20, "logging.getLogger('a').setLevel('ERROR')", []),
        (10, "logging.getLogger('a').setLevel('INFO')", ["INFO", "WARNING"]),
        (10, "logging.getLogger('a').addFilter(lambda record: record.levelno != 20)", ["DEBUG", "WARNING"]),
        (10, "logging.disable(logging.INFO)", ["WARNING"]),
    ],
)
def test_which_levels_cross(script: Script, host: int, set_up: str, expected: list[str]) -> None:
    outcome = script(
        f"""
        import logging
        {set_up}
        log = logging.getLogger("a")
        log.debug("x"); log.info("x"); log.warning("x")
        """,
        level=host,
    )
    assert [level for level, _, _ in outcome.said] == expected
    assert outcome.stderr == ""


def test_the_roots_level_follows_the_hosts_until_user_code_sets_one(script: Script) -> None:
    outcome = script(
        """
        import logging
        logging.info("no")
        logs.set_level(20)
        logging.info("first")
        logs.set_level(40)
        logging.warning("no")
        logs.set_level(10)
        logging.getLogger().setLevel(20)
        logging.debug("no")
        logs.set_level(5)
        logging.debug("no")
        logging.info("second")
        """,
        level=30,
    )
    assert [message for _, _, message in outcome.said] == ["first", "second"]


CONSOLES = [
    "logging.basicConfig(level=logging.INFO)",
    "logging.basicConfig(level=logging.INFO, stream=sys.stdout)",
    "logging.basicConfig(level=logging.INFO, format='{message}', style='{')",
    "log.addHandler(logging.StreamHandler())",
    "log.addHandler(logging.StreamHandler()); log.propagate = False",
    "logging.basicConfig(level=logging.INFO); log.addHandler(logging.StreamHandler(sys.__stdout__))",
    "import logging.config; logging.config.dictConfig({'version': 1, 'disable_existing_loggers': False, 'handlers': "
    "{'c': {'class': 'logging.StreamHandler'}}, 'root': {'handlers': ['c'], 'level': 'INFO'}})",
    "logging.basicConfig(level=logging.INFO); logging.getLogger().handlers.clear()",
    "log.propagate = False",
]


@pytest.mark.parametrize("set_up", CONSOLES)
def test_what_would_be_printed_arrives_once_as_a_record(script: Script, set_up: str) -> None:
    outcome = script(
        f"""
        import logging
        log = logging.getLogger("a")
        {set_up}
        log.info("once")
        """
    )
    assert outcome.said == [("INFO", "a", "once")]
    assert (outcome.stdout, outcome.stderr) == ("", "")


def test_what_rich_would_print_arrives_once_as_a_record(script: Script) -> None:
    pytest.importorskip("rich.logging")
    outcome = script(
        """
        import logging
        from rich.logging import RichHandler
        logging.basicConfig(level=logging.INFO, handlers=[RichHandler()])
        logging.getLogger("a").info("once")
        """
    )
    assert outcome.said == [("INFO", "a", "once")]
    assert (outcome.stdout, outcome.stderr) == ("", "")


def test_other_handlers_get_what_they_always_get(script: Script, tmp_path: Path) -> None:
    outcome = script(
        f"""
        import io, logging
        log = logging.getLogger("a")
        kept = io.StringIO()
        logging.basicConfig(level=logging.DEBUG, handlers=[logging.FileHandler({str(tmp_path / "log")!r})])
        log.addHandler(logging.StreamHandler(kept))
        log.handlers[0].setLevel(logging.INFO)
        log.debug("to the file only")
        log.info("to all")
        print(kept.getvalue(), end="")
        """
    )
    assert outcome.said == [("INFO", "a", "to all")]
    assert outcome.stdout == "to all\n"
    assert (tmp_path / "log").read_text() == "DEBUG:a:to the file only\nINFO:a:to all\n"


def test_a_logger_that_keeps_its_records_keeps_them_from_the_host(script: Script) -> None:
    outcome = script(
        """
        import io, logging
        log = logging.getLogger("a")
        log.propagate = False
        log.addHandler(logging.NullHandler())
        log.error("silenced")
        """
    )
    assert outcome.said == []
    assert outcome.stderr == ""


def test_whatever_is_logged_it_never_raises_and_is_bounded(script: Script) -> None:
    outcome = script(
        r"""
        import logging, enum
        class Strange:
            def __str__(self): raise RuntimeError("no text")
            __repr__ = __str__
        class Text(str):
            def __str__(self): return self
            def __getitem__(self, key): raise RuntimeError
            def __len__(self): raise RuntimeError
        class Own(Exception):
            def __str__(self): raise RuntimeError("no text either")
        logging.info("%d", "seven")
        logging.info(Strange())
        logging.info("x %s", Strange())
        logging.info(Text("own kind of text"))
        logging.info("\ud800 \x00 ü")
        logging.info("a" + "x" * 1_000_000 + "z")
        logging.getLogger("n" * 5000).log(25, "own level")
        logging.log(enum.IntEnum("E", {"A": 35}).A, "level of an enumeration")
        try:
            raise Own("x" * 1_000_000)
        except Own:
            logging.exception("own")
        logging.info("said where", stack_info=True)
        logging.info("none", exc_info=True)
        logging.info("%(a)s", {"a": 1})
        """
    )
    messages = [record.message for _, record in outcome.records]
    assert len(messages) == 12
    assert messages[0].startswith("%d (could not be put together with its 1 arguments: ")
    assert "that could not be put together" in messages[1] or "Strange (could not be put together" in messages[1]
    assert messages[2] == "x %s (could not be put together with its 1 arguments: no text)"
    assert messages[3] == "own kind of text"
    assert messages[4] == "\\ud800 \x00 ü"
    assert 19_900 < len(messages[5]) <= 20_000
    assert messages[5].startswith("axx")
    assert messages[5].endswith("xxz")
    assert len(outcome.records[6][1].logger) <= 300
    assert outcome.records[6][1].level_name == "Level 25"
    assert outcome.records[7][1].level == 35
    assert "Own" in outcome.records[8][1].exception
    assert "Stack (most recent call last):" in outcome.records[9][1].exception
    assert outcome.records[10][1].exception == ""
    assert messages[11] == "1"
    assert outcome.stderr == ""


def test_a_record_said_while_one_is_sent_does_not_go_round_in_circles(script: Script) -> None:
    outcome = script(
        """
        import logging
        class Chatty:
            def __str__(self):
                logging.warning("said by an argument")
                return "chatty"
        logging.info("%s", Chatty())
        """
    )
    assert outcome.said == [("INFO", "root", "chatty")]
    assert outcome.stderr == "WARNING:root:said by an argument\n"


def test_what_cannot_be_sent_is_printed(script: Script) -> None:
    outcome = script(
        """
        import logging
        def broken(*_): raise OSError("the host is gone")
        logs.install(broken, 20, int)
        logging.warning("to whom it may concern")
        def lost(): raise RuntimeError("several calls")
        logs.install(send, 20, lost)
        logging.warning("of no call")
        """
    )
    assert outcome.stderr == "WARNING:root:to whom it may concern\n"
    assert [(call, record.message) for call, record in outcome.records] == [(0, "of no call")]


def test_a_child_that_user_code_forked_sends_nothing(script: Script) -> None:
    outcome = script(
        """
        import logging, os
        logging.warning("parent")
        if os.fork() == 0:
            logging.warning("child")
            os._exit(0)
        os.wait()
        """
    )
    assert outcome.said == [("WARNING", "root", "parent")]
    assert outcome.stderr == "WARNING:root:child\n"


def test_a_worker_forked_from_a_prepared_process_sends_its_own(script: Script) -> None:
    outcome = script(
        """
        import logging, os
        if os.fork() == 0:
            logs.install(send, 20, lambda: 99)
            logging.info("from the fork")
            os._exit(0)
        os.wait()
        """
    )
    assert [(call, record.message) for call, record in outcome.records] == [(99, "from the fork")]


def test_the_ready_logger_is_the_services_and_knows_where_it_was_used(script: Script) -> None:
    outcome = script(
        """
        from atoll_worker.logs import log
        assert "logging" not in sys.modules
        def work():
            log.info("%d done", 3)
            log.log(30, "some left")
        work()
        assert log.isEnabledFor(20) and not log.isEnabledFor(10)
        log.setLevel(30)
        log.info("no")
        """
    )
    assert outcome.said == [("INFO", "root", "3 done"), ("WARNING", "root", "some left")]
    assert outcome.records[0][1].function == "work"


def test_warnings_and_libraries_that_wrap_the_same_step(script: Script) -> None:
    outcome = script(
        """
        import logging, warnings
        before = logging.Logger.callHandlers
        seen = []
        def wrapped(self, record):
            seen.append(record.getMessage())
            before(self, record)
        logging.Logger.callHandlers = wrapped
        logging.captureWarnings(True)
        warnings.warn("old")
        logging.info("x")
        print(len(seen))
        """
    )
    assert [(level, logger) for level, logger, _ in outcome.said] == [("WARNING", "py.warnings"), ("INFO", "root")]
    assert outcome.stdout == "2\n"


def test_many_threads_lose_nothing(script: Script) -> None:
    outcome = script(
        """
        import logging, threading
        def work(name):
            for number in range(200):
                logging.info("%s %d", name, number)
        threads = [threading.Thread(target=work, args=(one,)) for one in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        """
    )
    by_thread: dict[str, list[int]] = {}
    for _, record in outcome.records:
        name, number = record.message.split()
        by_thread.setdefault(name, []).append(int(number))
    assert sorted(by_thread) == [str(one) for one in range(8)]
    assert all(numbers == list(range(200)) for numbers in by_thread.values())


def test_plain_values_only(script: Script) -> None:
    outcome: Any = script("import logging; logging.info('x', extra={'own': object()})")
    assert json.dumps(outcome.records[0])  # nothing but what JSON knows too
