# SPDX-License-Identifier: Apache-2.0
"""Log records of workers: what ``logging`` said there is said here, under ``atoll.worker.<service>``.

A record keeps its level, time, place and text, and says by attributes which worker and call it is from. The thread that
receives it only takes it apart and keeps its line, for when the worker dies; handlers, which are the user's and may
block, run on the output reader's thread. A worker cannot do harm with what it sends: a payload that is no record is
passed over, and logger names are so many at most, because ``logging`` forgets none. What does not belong here: what
workers print (``output``), and how records get here.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from atoll_worker.errors import DecodeError
from atoll_worker.values import Decoder

from .output import KEPT_LINES, output_reader

_logger = logging.getLogger("atoll.processes")

# So many loggers for each service; records of further ones go to that of the service itself.
MOST_LOGGERS = 1000
# Lines of one record that are kept, of what may be a long traceback its last ones.
_KEPT_RECORD_LINES = 12
_LONGEST_KEPT_LINE = 2000
_FIELDS = (int, str, str, float, str, str, str, str, int, str)

_decoder = Decoder(checked=True, side="the host")
_names: dict[str, set[str]] = {}


class WorkerRecord(NamedTuple):
    """A record of a worker; see ``atoll_worker.logs.describe``. ``created`` is in seconds since the epoch, by the
    worker's clock."""

    level: int
    level_name: str
    logger: str
    created: float
    thread: str
    message: str
    exception: str
    path: str
    line: int
    function: str

    def lines(self) -> list[str]:
        """For an error message: what it says, and the end of its exception's text."""
        first, *more = self.message.splitlines() or [""]
        name = "" if self.logger == "root" else f"{self.logger}: "
        lines = [f"{self.level_name} {name}{first}", *more, *self.exception.splitlines()]
        if len(lines) > _KEPT_RECORD_LINES:
            lines[1 : 1 - _KEPT_RECORD_LINES] = ["..."]
        return [line[:_LONGEST_KEPT_LINE] for line in lines]


def parse(payload: bytes) -> WorkerRecord | None:
    """The record of a payload; None if it is none."""
    try:
        fields = _decoder.decode(payload)
    except (DecodeError, MemoryError):
        return None
    if type(fields) is not tuple or tuple(map(type, fields)) != _FIELDS:
        return None
    record = WorkerRecord(*fields)
    # Handlers turn the time into a date, and the numbers into C's.
    if not 0 <= record.level < 1 << 31 or not 0 <= record.line < 1 << 31:
        return None
    if not math.isfinite(record.created) or not 0 <= record.created < 1e11:
        return None
    return record


def emit(service: str, pid: int, call_id: int, record: WorkerRecord) -> None:
    """Say here what a worker said. On this thread, whose handlers and filters may raise what they like.

    The record that handlers get has the attributes ``service``, ``worker_pid``, ``call_id`` (0: said outside of a call)
    and ``worker_thread``, a name.
    """
    with contextlib.suppress(Exception):
        logger = logging.getLogger(_logger_name(service, record.logger))
        if not logger.isEnabledFor(record.level):
            return
        # As this program makes its records: its formatters may ask for what it adds.
        made = logging.getLogRecordFactory()(
            logger.name, record.level, record.path, record.line, record.message, None, None, record.function
        )
        made.levelname = record.level_name or made.levelname
        made.relativeCreated += (record.created - made.created) * 1000
        made.created = record.created
        made.msecs = math.floor(record.created % 1 * 1000)
        made.threadName = record.thread
        made.process = pid
        made.exc_text = record.exception or None
        made.__dict__.update(service=service, worker_pid=pid, call_id=call_id, worker_thread=record.thread)
        logger.handle(made)


def _logger_name(service: str, name: str) -> str:
    own = f"atoll.worker.{service}"
    if name in ("root", ""):
        return own
    names = _names.setdefault(service, set())
    if name not in names:
        if len(names) >= MOST_LOGGERS:
            return own
        names.add(name)
    return f"{own}.{name}"


class WorkerRecords:
    """What one worker said through ``logging``.

    Attributes:
        last: the last records, oldest first.
    """

    def __init__(self, service: str, pid: int) -> None:
        self._service = service
        self._pid = pid
        self.last: deque[WorkerRecord] = deque(maxlen=KEPT_LINES)

    def receive(self, call_id: int, payload: bytes) -> None:
        """A record arrived. Does not wait for handlers: on any thread, in the order they were said.

        Args:
            call_id: number of the call it belongs to, 0 if to none.
            payload: as ``atoll_worker.logs`` made it.
        """
        record = parse(payload)
        if record is None:
            _logger.debug(
                "the worker of service %r (pid %d) sent %d bytes that are no log record",
                *(self._service, self._pid, len(payload)),
            )
            return
        self.last.append(record)
        service, pid = self._service, self._pid
        output_reader().post(lambda: emit(service, pid, call_id, record))

    def last_words(self, lines: Iterable[tuple[float, str]] = ()) -> list[str]:
        """What is worth knowing after its death: the last lines of records from WARNING on and of ``lines``, by time.

        Args:
            lines: what it printed, each with the time it arrived, in seconds since the epoch, oldest first.
        """
        # Sorted, since threads log side by side.
        said = sorted(
            ((record.created, record) for record in list(self.last) if record.level >= logging.WARNING),
            key=lambda pair: pair[0],
        )
        records = ((created, line) for created, record in said for line in record.lines())
        # As one list first: lines may still arrive.
        merged = heapq.merge(records, list(lines), key=lambda pair: pair[0])
        return [line for _, line in merged][-KEPT_LINES:]
