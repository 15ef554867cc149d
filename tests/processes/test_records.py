# SPDX-License-Identifier: Apache-2.0
"""Records of workers arrive as records here, whole or not at all, whatever workers send and handlers do."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atoll.processes import output, records
from atoll.processes.output import KEPT_LINES, Stream, output_reader
from atoll.processes.records import WorkerRecord, WorkerRecords, parse
from atoll_worker import logs
from conditions import until

GOOD = (20, "INFO", "models.sd", 1_700_000_000.25, "loader", "loaded", "", "/srv/sd.py", 12, "load")


def payload_of(*fields: object, **changed: object) -> bytes:
    """A payload as a worker would send it, with some fields other than usual."""
    record = fields or WorkerRecord(*GOOD)._replace(**changed)  # type: ignore[arg-type]
    return pickle.dumps(tuple(record), 5)


class Kept(logging.Handler):
    """Keeps the records that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Kept]:
    """What loggers of workers get, all levels."""
    drain()  # what workers of earlier tests said
    logger, handler = logging.getLogger("atoll.worker"), Kept()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(1)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


def drain() -> None:
    """Wait until what was posted to the reader's thread has run."""
    done = threading.Event()
    until(lambda: output_reader().post(done.set))
    assert done.wait(20)


def test_a_record_arrives_as_it_was_said(kept: Kept) -> None:
    try:
        raise LookupError("no such model")
    except LookupError:
        said = logging.LogRecord("models.sd", 40, "/srv/sd.py", 7, "lost %s", ("x",), sys.exc_info(), "load")
    said.threadName = "loader"
    WorkerRecords("vision", 4711).receive(3, logs.describe(said))
    (got,) = until(lambda: kept.records)
    assert got.name == "atoll.worker.vision.models.sd"
    assert (got.levelno, got.levelname, got.getMessage()) == (40, "ERROR", "lost x")
    assert (got.service, got.worker_pid, got.call_id, got.worker_thread) == ("vision", 4711, 3, "loader")
    assert (got.created, got.pathname, got.lineno, got.funcName) == (said.created, "/srv/sd.py", 7, "load")
    assert (got.process, got.threadName) == (4711, "loader")
    assert got.msecs == int(said.created % 1 * 1000)
    assert got.relativeCreated == pytest.approx(said.relativeCreated, abs=2.0)
    formatted = logging.Formatter("%(asctime)s %(levelname)s %(message)s").format(got)
    assert formatted.endswith("LookupError: no such model")
    assert "ERROR lost x\nTraceback (most recent call last):" in formatted


def test_a_record_has_what_this_program_gives_its_records(kept: Kept) -> None:
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = before(*args, **kwargs)
        made.request = "r1"
        return made

    logging.setLogRecordFactory(factory)
    try:
        WorkerRecords("s", 1).receive(0, payload_of())
        (got,) = until(lambda: kept.records)
    finally:
        logging.setLogRecordFactory(before)
    assert logging.Formatter("%(request)s %(message)s").format(got) == "r1 loaded"


def test_its_time_is_the_workers_however_long_it_takes_to_make_the_record(kept: Kept) -> None:
    """Also the time since this program began."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = before(*args, **kwargs)
        time.sleep(0.05)
        return made

    said = logging.LogRecord("models.sd", 20, "/srv/sd.py", 7, "loaded", None, None)
    logging.setLogRecordFactory(factory)
    try:
        WorkerRecords("s", 1).receive(0, logs.describe(said))
        (got,) = until(lambda: kept.records)
    finally:
        logging.setLogRecordFactory(before)
    assert got.relativeCreated == pytest.approx(said.relativeCreated, abs=2.0)


def test_percent_signs_of_a_message_are_left_alone(kept: Kept) -> None:
    WorkerRecords("s", 1).receive(0, payload_of(message="100 % of %s and %(x)d"))
    (got,) = until(lambda: kept.records)
    assert got.getMessage() == "100 % of %s and %(x)d"


def test_the_root_logger_over_there_is_the_services_own(kept: Kept) -> None:
    WorkerRecords("vision", 1).receive(0, payload_of(logger="root"))
    (got,) = until(lambda: kept.records)
    assert got.name == "atoll.worker.vision"


def test_levels_and_filters_of_this_process_decide_here(kept: Kept) -> None:
    worker = WorkerRecords("vision", 1)
    loud, quiet = logging.getLogger("atoll.worker.vision.loud"), logging.getLogger("atoll.worker.vision.quiet")
    quiet.setLevel(logging.ERROR)
    try:
        worker.receive(0, payload_of(logger="quiet"))
        worker.receive(0, payload_of(logger="loud", level=25, level_name="NOTE"))
        drain()
    finally:
        quiet.setLevel(logging.NOTSET)
    (got,) = kept.records
    assert (got.name, got.levelno, got.levelname) == (loud.name, 25, "NOTE")


MALFORMED: list[bytes] = [
    b"",
    b"nonsense",
    pickle.dumps(os.getpid, 5),
    payload_of()[:-3],
    pickle.dumps(list(GOOD), 5),
    payload_of(*GOOD[:-1]),
    payload_of(*GOOD, "more"),
    *(payload_of(**{name: None}) for name in WorkerRecord._fields),
    payload_of(level=True),
    payload_of(level=-1),
    payload_of(level=1 << 40),
    payload_of(line=1 << 40),
    payload_of(created=float("nan")),
    payload_of(created=float("inf")),
    payload_of(created=-5.0),
    payload_of(created=1e300),
]


@pytest.mark.parametrize("payload", MALFORMED)
def test_what_is_no_record_is_passed_over_with_one_quiet_line(
    kept: Kept, caplog: pytest.LogCaptureFixture, payload: bytes
) -> None:
    worker = WorkerRecords("vision", 4711)
    with caplog.at_level(logging.DEBUG, "atoll.processes"):
        worker.receive(0, payload)
    (line,) = caplog.records
    assert line.levelno == logging.DEBUG
    assert (
        line.getMessage()
        == f"the worker of service 'vision' (pid 4711) sent {len(payload)} bytes that are no log record"
    )
    drain()
    assert kept.records == []
    assert worker.last_words() == []


def test_a_handler_that_raises_stops_no_other_record(kept: Kept) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError(record)

    logger, broken = logging.getLogger("atoll.worker.vision"), Broken()
    logger.addHandler(broken)
    try:
        WorkerRecords("vision", 1).receive(0, payload_of(message="first"))
        WorkerRecords("other", 1).receive(0, payload_of(message="second"))
        drain()
    finally:
        logger.removeHandler(broken)
    assert [one.getMessage() for one in kept.records] == ["second"]


def test_logger_names_without_end_make_no_loggers_without_end(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_LOGGERS", 3)
    monkeypatch.setattr(records, "_names", {})
    worker = WorkerRecords("many", 1)
    for number in range(50):
        worker.receive(0, payload_of(logger=f"n{number}"))
    drain()
    names = {one.name for one in kept.records}
    assert names == {"atoll.worker.many", *(f"atoll.worker.many.n{number}" for number in range(3))}
    assert len(kept.records) == 50


def test_what_is_posted_runs_in_order_and_survives_what_raises() -> None:
    ran: list[int] = []

    def fail() -> None:
        raise LookupError("in a posted function")

    for number in range(2000):
        until(lambda number=number: output_reader().post(lambda: ran.append(number)))
        if number % 100 == 0:
            output_reader().post(fail)
    drain()
    assert ran == list(range(2000))


def test_records_that_handlers_cannot_keep_up_with_are_dropped_and_counted(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "MOST_POSTED", 10)
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        assert go_on.wait(20)

    output_reader().post(block)
    assert blocked.wait(20)
    worker = WorkerRecords("flood", 1)
    for number in range(25):
        worker.receive(0, payload_of(message=str(number)))
    go_on.set()
    until(lambda: len(kept.records) == 11)
    assert [one.getMessage() for one in kept.records[:10]] == [str(number) for number in range(10)]
    assert kept.records[10].getMessage().startswith("15 log records of workers were dropped")
    assert kept.records[10].levelno == logging.WARNING


def test_pipes_are_read_between_records() -> None:
    read_end, write_end = os.pipe()
    stream = Stream(read_end, "s", 1, "stderr")
    output_reader().add(stream)
    ended = threading.Event()

    def post_again() -> None:
        if not ended.is_set():
            output_reader().post(post_again)

    post_again()
    try:
        os.write(write_end, b"a line\n")
        until(lambda: stream.last_lines == ["a line"])
    finally:
        ended.set()
        os.close(write_end)
        until(stream.ended.is_set)


def worker_with(*said: WorkerRecord) -> WorkerRecords:
    worker = WorkerRecords("s", 1)
    for record in said:
        worker.receive(0, pickle.dumps(tuple(record), 5))
    return worker


def record(created: float, message: str, level: str = "WARNING", exception: str = "") -> WorkerRecord:
    return WorkerRecord(
        logging.getLevelNamesMapping()[level], level, "a.b", created, "main", message, exception, "f.py", 1, "f"
    )


def test_last_words_are_what_was_printed_and_warned_of_by_time() -> None:
    worker = worker_with(
        record(1.0, "one"),
        record(2.0, "chatter", "INFO"),
        record(5.0, "five", "CRITICAL", "Traceback:\n  there\nValueError: x"),
        record(3.0, "three\nsecond line"),
    )
    assert worker.last_words([(0.5, "printed first"), (4.0, "printed between"), (6.0, "printed last")]) == [
        "printed first",
        "WARNING a.b: one",
        "WARNING a.b: three",
        "second line",
        "printed between",
        "CRITICAL a.b: five",
        "Traceback:",
        "  there",
        "ValueError: x",
        "printed last",
    ]


def test_last_words_are_bounded() -> None:
    worker = worker_with(*(record(float(number), f"line {number}") for number in range(100)))
    assert len(worker.last) == KEPT_LINES
    assert worker.last_words([(1000.0 + number, "printed") for number in range(3)])[-5:] == [
        "WARNING a.b: line 98",
        "WARNING a.b: line 99",
        *["printed"] * 3,
    ]
    long = record(1.0, "failed", "ERROR", "\n".join(f"frame {number}" for number in range(500)))
    lines = worker_with(long).last_words()
    assert (lines[0], lines[1], lines[-1], len(lines)) == ("ERROR a.b: failed", "...", "frame 499", 13)
    assert len(worker_with(record(1.0, "x" * 20_000)).last_words()[0]) == 2000


def test_the_last_words_are_there_before_any_handler_was_done(kept: Kept) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait(20)

    output_reader().post(block)
    assert blocked.wait(20)
    try:
        assert worker_with(record(time.time(), "the end is near")).last_words() == ["WARNING a.b: the end is near"]
        assert kept.records == []
    finally:
        go_on.set()


def test_a_record_round_trip(kept: Kept) -> None:
    make: Callable[..., logging.LogRecord] = logging.LogRecord
    assert parse(logs.describe(make("n", 20, "p", 1, "m", None, None)))._replace(created=0.0) == WorkerRecord(  # type: ignore[union-attr]
        20, "INFO", "n", 0.0, "MainThread", "m", "", "p", 1, ""
    )
