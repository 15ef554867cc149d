# SPDX-License-Identifier: Apache-2.0
"""Log records and traces through a real worker process: what its code says arrives, with the call it was said in, also
when it dies at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.processes import start_process
from atoll_worker import wire
from atoll_worker.connection import Connection, ConnectionClosed
from atoll_worker.context import WITH_META
from atoll_worker.values import Decoder, Encoder
from conditions import until

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

SERVICE = """\
import os, sys
from atoll_worker import expose, log, traceparent

assert "logging" not in sys.modules

@expose
def work():
    import logging
    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("models.sd").info("loaded %d", 3)
    log.debug("not of interest")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("failed")
    print("printed", file=sys.stderr)

@expose
def die():
    log.warning("the disk is full")
    os._exit(9)

@expose
def trace():
    return traceparent()
"""


class Worker:
    """A worker process, greeted and loaded; as much of a host as this takes."""

    def __init__(self, file: Path, level: int) -> None:
        self.process = start_process(sys.executable, "through", dict(os.environ), use_lane=False)
        self._connection = Connection(*self.process.connections[0], "client")
        self._encoder, self._decoder = Encoder(), Decoder(checked=True, side="the host")
        self._reader = wire.FrameReader()
        self._connection.send(wire.HELLO, wire.RAW, wire.hello())
        wire.check_hello(self._connection.receive().payload)
        load = {
            "entry": {"kind": "file", "path": str(file), "class": None},
            "sys_path": [],
            "watch": {},
            "log_level": level,
        }
        self._connection.send(wire.LOAD, wire.PICKLE, self._encoder.encode(load))
        frame = self._connection.receive()
        assert frame.kind == wire.READY, self._decoder.decode(frame.payload)["text"]

    def call(self, name: str, *args: Any) -> Any:
        payload = self._encoder.encode((name, args, {}))
        kind, _, payload, buffers = self._connection.exchange(wire.PICKLE, payload)
        assert kind == wire.RESULT, self._decoder.decode(payload, buffers)
        return self._decoder.decode(payload, buffers)

    def hear(self) -> None:
        """Pass on what arrived on the control connection until now."""
        try:
            data = self.process.control.recv(1 << 16)
        except BlockingIOError:
            return
        for frame in self._reader.receive_data(data):
            if frame.kind == wire.LOG:
                self.process.records.receive(frame.call_id, bytes(frame.payload))

    def end(self) -> None:
        self._connection.close()
        self.process.kill()
        assert self.process.exited.wait(20)
        self.process.control.close()
        self.process.descriptors.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    file = tmp_path / "through.py"
    file.write_text(SERVICE)
    made = Worker(file, logging.INFO)
    made.process.control.setblocking(False)
    yield made
    made.end()


def test_what_is_said_in_a_call_arrives_once(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    def arrived() -> list[Any]:
        worker.hear()
        return caplog.records if len(caplog.records) >= 3 else []

    with caplog.at_level(logging.INFO, "atoll.worker.through"):
        worker.call("work")
        until(arrived)
    found = {(one.name, one.levelname, one.getMessage()): one for one in caplog.records}
    info = found.pop(("atoll.worker.through.models.sd", "INFO", "loaded 3"))
    failed = found.pop(("atoll.worker.through", "ERROR", "failed"))
    # As a line that was printed, and nothing of what basicConfig's handler would have printed.
    printed = found.pop(("atoll.worker.through", "WARNING", "printed"))
    assert found == {}
    assert printed.stream == "stderr"
    assert info.worker_pid == failed.worker_pid == worker.process.pid
    assert info.call_id == failed.call_id > 0
    assert info.worker_thread == "MainThread"
    assert failed.exc_text.endswith("ZeroDivisionError: division by zero")
    assert failed.pathname.endswith("through.py")


def test_the_last_records_survive_the_worker(worker: Worker) -> None:
    with pytest.raises(ConnectionClosed):
        worker.call("die")
    assert worker.process.exited.wait(20)
    until(lambda: (worker.hear(), worker.process.records.last)[1])
    assert worker.process.last_stderr() == ["WARNING the disk is full"]


def test_a_trace_crosses(worker: Worker) -> None:
    assert worker.call("trace") is None
    assert worker.call(WITH_META, {"traceparent": HEADER}, "trace", (), {}) == HEADER
    assert worker.call("trace") is None
