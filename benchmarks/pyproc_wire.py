# SPDX-License-Identifier: Apache-2.0
"""Calls over pyproc's wire: one caller of one worker, four callers of two, and payloads of three sizes.

    python -m benchmarks.pyproc_wire [quick]

The caller is ``pyproc_client.c``, which does no more than the wire asks of a client. The workers are those of
``pyproc_worker``: ``run_worker`` with the standard library's JSON and with the fastest that is there, and the plain
program. All are up at the same time and measured in turn, round by round. A sample is one round's p50 (of one caller,
in nanoseconds, request written to reply checked) or its calls per second. A payload is one text of that many bytes,
there and back.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.floor import compile_program
from benchmarks.percentiles import summarize
from benchmarks.starting import BUILD

# Name -> kind of worker, and its codec.
WORKERS = {"json": ("atoll", "json"), "fastest": ("atoll", "auto"), "plain": ("plain", "json")}
SIZES = (1_000, 100_000, 5_000_000)
CALLERS, PROCESSES = 4, 2
ROUNDS, QUICK_ROUNDS = 10, 2
SECONDS, QUICK_SECONDS = 0.4, 0.2
START_SECONDS = 20.0


@contextmanager
def worker(name: str, path: str) -> Iterator[None]:
    """A worker that listens at ``path``."""
    kind, codec = WORKERS[name]
    environ = {**os.environ, "PYPROC_SOCKET_PATH": path, "PYPROC_CODEC_TYPE": codec}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.pyproc_worker", kind], env=environ)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker {name!r} did not start")
            time.sleep(0.01)
        yield
    finally:
        process.send_signal(signal.SIGINT if kind == "atoll" else signal.SIGKILL)
        process.wait()


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0


class Client:
    """The compiled client."""

    def __init__(self) -> None:
        source = Path(__file__).with_name("pyproc_client.c")
        self._program = str(compile_program(source, BUILD / "benchmarks", "-pthread"))

    def run(self, seconds: float, callers: int, method: str, size: int, sockets: list[str]) -> dict[str, Any]:
        """What it measured. Raises RuntimeError when a single call failed."""
        command = [self._program, str(seconds), str(callers), method, str(size), *sockets]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        measured: dict[str, Any] = json.loads(done.stdout)
        if measured["errors"] or not measured["calls"]:
            raise RuntimeError(f"{measured['errors']} of {measured['calls']} calls failed: {' '.join(command)}")
        return measured


def one_round(client: Client, seconds: float, sockets: list[str]) -> dict[str, float]:
    """One sample of each kind, of one kind of worker."""
    samples = {"one caller": client.run(seconds, 1, "predict", 0, sockets[:1])["p50"]}
    many = client.run(seconds, CALLERS, "predict", 0, sockets)
    samples["many callers"] = many["calls"] / many["seconds"]
    for size in SIZES:
        samples[str(size)] = client.run(seconds, 1, "echo", size, sockets[:1])["p50"]
    return samples


@contextmanager
def all_workers(folder: str) -> Iterator[dict[str, list[str]]]:
    """The sockets of each kind."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        sockets = {name: [f"{folder}/{name}{number}" for number in range(PROCESSES)] for name in WORKERS}
        for name, paths in sockets.items():
            for path in paths:
                stack.enter_context(worker(name, path))
        yield sockets


def main() -> int:
    quick = "quick" in sys.argv
    client = Client()
    seconds = QUICK_SECONDS if quick else SECONDS
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in WORKERS}
    with tempfile.TemporaryDirectory(prefix="pyproc-") as folder, all_workers(folder) as sockets:
        for paths in sockets.values():
            one_round(client, 0.1, paths)
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            for name, paths in sockets.items():
                taken[name].append(one_round(client, seconds, paths))
    print(
        json.dumps(
            {
                name: {kind: asdict(summarize(one[kind] for one in rounds)) for kind in rounds[0]}
                for name, rounds in taken.items()
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
