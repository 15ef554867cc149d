# SPDX-License-Identifier: Apache-2.0
"""Submitted calls stand in the one queue of their pool: counted, bounded, in order, and in nobody's way."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import atoll
from client.gates import GATED, Callers, Gates
from conditions import WITHIN, until


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path / "gates")


def test_they_count_as_others_do(gates: Gates) -> None:
    """Toward ``max_queue`` and in ``status``: those that wait, and not the one that runs, or will at once."""
    with atoll.Service(gates.file, max_queue=2, **gates.options) as service:
        calls = [service.hold.submit() for _ in range(3)]
        assert service.status().queue == 2
        for refused in (service.whoami, service.whoami.submit):
            with pytest.raises(atoll.QueueFull, match="whoami was not queued: 2 calls wait for a worker already"):
                refused()
        assert calls[1].cancel()
        assert service.status().queue == 1
        last = service.whoami.submit()
        gates.open()
        assert {call.result(WITHIN) for call in (calls[0], calls[2], last)} == {service.pid}
        assert service.status().queue == 0


def test_before_a_worker_is_there(gates: Gates) -> None:
    """Those that it will take at once do not count as waiting."""
    waits = "while not (folder / 'go').exists():\n    time.sleep(0.002)\n\n"
    gates.file.write_text(GATED.replace("def note", waits + "def note"))
    service = atoll.Service(gates.file, max_queue=2, workers=2, **gates.options)
    calls = [service.meet.submit(2) for _ in range(2)] + [service.whoami.submit() for _ in range(2)]
    (gates.folder / "go").touch()
    assert all(call.result(60) for call in calls)
    service.close()


def test_first_come_first_served(tmp_path: Path) -> None:
    """Those who call and those who submit, mixed."""
    file, gate = tmp_path / "ordered.py", tmp_path / "gate"
    file.write_text(
        "import os, time\nfrom atoll_worker import expose\nseen = []\n"
        "@expose\ndef hold(gate):\n    while not os.path.exists(gate):\n        time.sleep(0.002)\n"
        "@expose\ndef see(number=None):\n    seen.append(number)\n    return seen\n"
    )
    with atoll.Service(file) as service:
        service.start()
        service.hold.submit(str(gate))
        threads = [threading.Thread(target=service.see, args=(number,)) for number in (1, 3, 5)]
        for number in range(6):
            if number % 2:
                threads[number // 2].start()
            else:
                service.see.submit(number)
            until(lambda number=number: service.status().queue == number + 1)
        gate.touch()
        assert service.see() == [*range(6), None]
        for thread in threads:
            thread.join(WITHIN)


def test_a_callback_of_theirs_may_call(gates: Gates) -> None:
    """On the one thread that makes calls, while the next one has the only worker already, or waits for it."""
    with atoll.Service(gates.file, **gates.options) as service:
        first = service.hold.submit()
        got: list[Any] = []
        first.add_done_callback(lambda _: got.extend((service.echo(1), service.echo.submit(2).result(WITHIN))))
        others = [service.echo.submit(number) for number in range(20)]
        gates.open()
        assert [call.result(WITHIN) for call in others] == list(range(20))
        until(lambda: got == [1, 2])


def test_retries_beside_others_that_wait(tmp_path: Path) -> None:
    """A call that is made again waits on its thread, while another has its channel and needs a thread."""
    file = tmp_path / "mortal.py"
    file.write_text(
        "import os\nfrom atoll_worker import expose\n"
        "@expose(idempotent=True)\ndef once(path):\n"
        "    if not os.path.exists(path):\n        open(path, 'w').close()\n        os._exit(3)\n    return path\n"
    )
    with atoll.Service(file, restart={"backoff": 0.0}) as service:
        once = service.once.options(retries=1)
        paths = [str(tmp_path / f"died-{number}") for number in range(4)]
        calls = [once.submit(path) for path in paths]
        assert [call.result(60) for call in calls] == paths


def test_calls_that_wait_keep_their_service(gates: Gates) -> None:
    """Submitted and forgotten, before there is a worker: they are made all the same."""
    atoll.Service(gates.file, **gates.options).hold.submit()
    atoll.Service(gates.file, **gates.options).hold.submit()
    gc.collect()
    until(lambda: gates.held == 2, 60)
    gates.open()


def test_closing_while_they_wait(gates: Gates) -> None:
    """Each is told; and so are those that come in this very moment."""
    service = atoll.Service(gates.file, **gates.options)
    service.start()
    calls = [service.hold.submit() for _ in range(100)]
    until(lambda: gates.held == 1)
    with Callers(2, lambda: calls.append(service.echo.submit(1))):
        until(lambda: len(calls) > 200)
        service.close()
    deadline = time.monotonic() + WITHIN
    errors = {type(call.exception(max(0.0, deadline - time.monotonic()))) for call in calls}
    assert errors == {atoll.ServiceClosed}
