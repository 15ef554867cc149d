# SPDX-License-Identifier: Apache-2.0
"""The benchmark of pyproc's wire: its client checks what it is told, and its figures are what was measured."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from benchmarks.percentiles import summarize
from benchmarks.pyproc_figures import PROMISES, pyproc_figures
from benchmarks.pyproc_wire import SIZES, WORKERS, Client, all_workers, one_round


def summary(*samples: float) -> dict[str, float]:
    return asdict(summarize(samples))


def measured(factor: float) -> dict[str, dict[str, dict[str, float]]]:
    """Results in which the promises are kept by this factor."""
    samples = {
        "one caller": summary(25_000 / factor),
        "many callers": summary(60_000 * factor),
        **{str(size): summary(time / 2 / factor) for size, time in zip(SIZES, (127e3, 677e3, 47e6), strict=True)},
    }
    return dict.fromkeys(WORKERS, samples)


def test_figures() -> None:
    assert [figure.met for figure in pyproc_figures({"wire": measured(1.01)})] == [True] * 5
    assert [figure.met for figure in pyproc_figures({"wire": measured(0.99)})] == [False] * 5
    failed = pyproc_figures({"wire": {"error": "it broke"}})
    assert [(figure.met, figure.detail) for figure in failed] == [(False, "it broke")] * len(PROMISES["wire"])


def test_a_round_of_each_worker() -> None:
    client = Client()
    with tempfile.TemporaryDirectory(prefix="pyproc-") as folder, all_workers(folder) as sockets:
        for paths in sockets.values():
            assert all(sample > 0 for sample in one_round(client, 0.05, paths).values())


LIES: dict[str, Callable[[dict[str, object]], object]] = {
    "truth": lambda request: {"id": request["id"], "ok": True, "body": {}},
    "of another": lambda request: {"id": 0, "ok": True, "body": {}},
    "an error": lambda request: {"id": request["id"], "ok": False, "error": "no"},
}


@pytest.mark.parametrize("lie", LIES)
def test_the_client_counts_a_reply_that_is_wrong(lie: str) -> None:
    import socket
    import threading

    client = Client()
    with tempfile.TemporaryDirectory(prefix="pyproc-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder) / "s")
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                while frame := connection.recv(1 << 16):
                    reply = json.dumps(LIES[lie](json.loads(frame[4:])), separators=(",", ":")).encode()
                    connection.sendall(len(reply).to_bytes(4, "big") + reply)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            if lie == "truth":
                assert client.run(0.05, 1, "predict", 0, [path])["calls"] > 0
            else:
                with pytest.raises(RuntimeError, match="calls failed"):
                    client.run(0.05, 1, "predict", 0, [path])
        finally:
            thread.join()


def test_the_client_needs_somebody_to_call() -> None:
    with pytest.raises((RuntimeError, subprocess.CalledProcessError)):
        Client().run(0.05, 1, "predict", 0, ["/nowhere/at/all"])
