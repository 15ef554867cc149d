# SPDX-License-Identifier: Apache-2.0
"""The other side of pyproc's wire, for tests: a program that calls ``run_worker``, and a caller that does no more than
the wire asks of one.

What does not belong here: anything of atoll's own; what is tested must not test itself.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conditions import WITHIN, end, until

PACKAGE = Path(__file__).parents[1] / "src" / "atoll_worker"


class Caller:
    """One connection to a worker."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WITHIN)
        self._number = 0
        try:
            self.sock.connect(path)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def send_raw(self, payload: bytes) -> None:
        """One frame of whatever bytes."""
        self.sock.sendall(len(payload).to_bytes(4, "big") + payload)

    def send(self, message: Any) -> None:
        """One frame of JSON."""
        self.send_raw(json.dumps(message).encode())

    def request(self, method: str, body: Any = None, **more: Any) -> int:
        """Send a request; returns its id."""
        self._number += 1
        self.send({"id": self._number, "method": method, "body": body, **more})
        return self._number

    def cancel(self, request_id: Any, reason: str = "context cancelled") -> None:
        """Send a cancellation."""
        self.send({"type": "cancellation", "payload": {"id": request_id, "reason": reason}})

    def read_exactly(self, count: int) -> bytes:
        """That many bytes; raises EOFError if the worker hangs up before."""
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(min(1 << 20, count - len(data)))
            if not piece:
                raise EOFError(f"{len(data)} of {count} bytes")
            data += piece
        return bytes(data)

    def reply(self) -> Any:
        """The next reply."""
        text = self.read_exactly(int.from_bytes(self.read_exactly(4), "big")).decode()
        return json.loads(text, parse_constant=_refuse)

    def ask(self, method: str, body: Any = None, **more: Any) -> Any:
        """Send a request, and wait for its reply, which must be its own."""
        number = self.request(method, body, **more)
        reply = self.reply()
        assert reply["id"] == number, reply
        return reply

    def call(self, method: str, body: Any = None, **more: Any) -> Any:
        """The body of the reply, which must be good."""
        reply = self.ask(method, body, **more)
        assert set(reply) == {"id", "ok", "body"}, reply
        assert reply["ok"] is True
        return reply["body"]

    def error(self, method: str, body: Any = None, **more: Any) -> str:
        """The error of the reply, which must be bad."""
        reply = self.ask(method, body, **more)
        assert set(reply) == {"id", "ok", "error"}, reply
        assert reply["ok"] is False
        assert type(reply["error"]) is str
        return str(reply["error"])


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


class Worker:
    """A running worker process."""

    def __init__(self, process: subprocess.Popen[str], path: str, errors: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.path = path
        self._errors = errors

    def caller(self) -> Caller:
        """A new connection."""
        return Caller(self.path)

    def until_ready(self) -> Worker:
        """Wait until it accepts connections."""
        until(self._is_ready, within=90, what="the worker to accept connections")  # it may import much
        return self

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the worker ended: {self.stderr()}"
        try:
            self.caller().close()
        except OSError:
            return False
        return True

    def stderr(self) -> str:
        """What it wrote on standard error so far."""
        return self._errors.read_text()

    def stop(self, number: int) -> int:
        """Send a signal, and wait for the end; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(WITHIN)


@contextmanager
def folder_for_sockets() -> Iterator[Path]:
    """A folder whose path is short: that of a socket has room for 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="pyproc-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def running(
    python: str,
    program: str,
    folder: Path,
    environ: Mapping[str, str] | None = None,
    name: str = "s",
    ready: bool = True,
) -> Iterator[Worker]:
    """A worker that runs this program, with nothing of atoll's but the package that goes into workers.

    Args:
        python: the interpreter.
        program: the text of the program.
        folder: where program and socket are.
        environ: variables beside those that every process has.
        name: of the socket.
        ready: whether to wait until it accepts connections.
    """
    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    if not (packages / PACKAGE.name).exists():
        (packages / PACKAGE.name).symlink_to(PACKAGE)
    file = folder / f"{name}_worker.py"
    file.write_text(program)
    path, errors = str(folder / name), folder / f"{name}.stderr"
    variables = {
        **{key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ},
        "PYTHONPATH": str(packages),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYPROC_SOCKET_PATH": path,
        **(environ or {}),
    }
    with errors.open("ab") as sink:
        process = subprocess.Popen(
            [python, str(file)], env=variables, cwd=folder, stderr=sink, stdin=subprocess.DEVNULL, text=True
        )
    worker = Worker(process, path, errors)
    try:
        yield worker.until_ready() if ready else worker
    finally:
        end(process)
