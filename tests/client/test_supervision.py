# SPDX-License-Identifier: Apache-2.0
"""Workers that end unexpectedly are replaced; those that only fail are not tried for ever; a silent one is found."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import atoll
from client.gates import Callers, Gates
from client.rungs import ends_at, not_before
from conditions import WITHIN, is_gone, until, until_gone

Write = Callable[[str, str], Path]


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path / "gates")


def restarts(service: atoll.Service) -> dict[str, int]:
    """How many workers took another's place, by reason."""
    return {
        sample.labels["reason"]: int(sample.value)  # type: ignore[arg-type]
        for metric in service.metrics()
        if metric.name == "atoll_worker_restarts_total"
        for sample in metric.samples
    }


def ready(service: atoll.Service) -> list[int]:
    return [worker.pid for worker in service.status().workers if worker.state == "ready"]


# -- one that ends is replaced -------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_replaced_before_anybody_calls(gates: Gates) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        first = service.whoami()
        os.kill(first, signal.SIGKILL)
        until(lambda: ready(service) and ready(service) != [first])
        assert service.status().restarts == 1
        assert restarts(service) == {"crashed": 1}
        assert service.whoami() == service.pid != first


def test_a_worker_that_exits_in_a_call_is_replaced(gates: Gates) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        for number in range(3):
            service.whoami()
            with pytest.raises(atoll.WorkerDied, match=f"exited with code {number}"):
                service.exit(number)
        assert service.whoami() == service.pid
        assert restarts(service) == {"crashed": 3}


def test_others_serve_while_one_is_replaced(gates: Gates) -> None:
    with (
        atoll.Service(gates.file, workers=2, **gates.options) as service,
        Callers(4, service.whoami) as callers,
    ):
        victims: set[int] = set()
        for _ in range(4):
            until(lambda: len({*ready(service)} - victims) == 2)
            victim = service.whoami()
            victims.add(victim)
            os.kill(victim, signal.SIGKILL)
            until_gone(victim)  # which the pool may not have seen yet
        until(lambda: len({*ready(service)} - victims) == 2)
        before = len(callers.results)
        until(lambda: len(callers.results) > before + 100)
    assert {type(error) for error in callers.errors} <= {atoll.WorkerDied}
    assert len(callers.errors) <= 8


def test_out_of_memory_is_a_reason_of_its_own(gates: Gates) -> None:
    with atoll.Service(gates.file, memory="150MB", **gates.options) as service:
        with pytest.raises(atoll.WorkerOutOfMemory):
            service.grow(250_000_000, stay=True)  # until it is seen
        assert service.whoami() == service.pid
        assert restarts(service) == {"out of memory": 1}


def test_what_a_deadline_ends_is_replaced_and_not_counted_as_a_failure(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = """\
        import time
        from atoll_worker import expose

        @expose
        def stay(begun):
            while True:
                try:
                    open(begun, "w").close()
                    time.sleep(60)
                except BaseException:
                    pass

        @expose
        def echo(value):
            return value
        """
    file = gates.folder / "stubborn.py"
    file.write_text("\n".join(line[8:] for line in stubborn.splitlines()))
    with atoll.Service(file, breaker={"failures": 1}, restart={"max_restarts": 0}) as service:
        ends_at(monkeypatch, "SIGTERM")
        for number in range(2):
            begun = gates.folder / f"begun{number}"
            not_before(monkeypatch, begun.exists)
            with pytest.raises(atoll.CallTimeout, match="was stopped"):
                service.stay.options(timeout=0.2)(str(begun))
            assert service.echo(number) == number
        assert restarts(service) == {}


# -- one that only fails -------------------------------------------------------------------------------------------

FRAGILE = """\
import os, sys, time
from pathlib import Path
from atoll_worker import Service, expose, log

folder = Path(os.environ["FOLDER"])
with open(folder / "starts", "a") as file:
    file.write(f"{time.monotonic()}\\n")
if (folder / "broken").exists():
    print("the disk is on fire", file=sys.stderr, flush=True)
    os._exit(3)

@expose
def whoami():
    return os.getpid()
"""


class Fragile:
    """A service that cannot start while ``broken``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "fragile.py"
        self.file.write_text(FRAGILE)
        self.options: dict[str, Any] = {"env_vars": {"FOLDER": str(folder)}}

    def breaks(self) -> None:
        (self.folder / "broken").touch()

    def mended(self) -> None:
        (self.folder / "broken").unlink()

    @property
    def starts(self) -> list[float]:
        """When each worker was started, by ``time.monotonic()``."""
        return [float(line) for line in (self.folder / "starts").read_text().splitlines()]


@pytest.fixture
def fragile(tmp_path: Path) -> Fragile:
    return Fragile(tmp_path)


def test_pauses_between_restarts_double_until_the_breaker_opens(fragile: Fragile) -> None:
    service = atoll.Service(
        fragile.file, restart={"backoff": 0.1}, breaker={"failures": 5, "cooldown": 60}, **fragile.options
    )
    with service:
        first = service.whoami()
        fragile.breaks()
        os.kill(first, signal.SIGKILL)
        until(lambda: service.status().state == "open")
        starts = fragile.starts[1:]  # of those that took the place of the first
        assert len(starts) == 4
        for number, (one, other) in enumerate(pairwise(starts)):
            # Never sooner; how much later is the machine's business. The first of the row is the one that was killed.
            assert other - one >= 0.1 * 2**number * 0.75
        with pytest.raises(atoll.CircuitOpen) as caught:
            service.whoami()
        assert "5 workers failed one after another" in str(caught.value)
        assert "exited with code 3" in str(caught.value)
        assert caught.value.retry_in is not None
        assert 0 < caught.value.retry_in <= 60
        with pytest.raises(atoll.CircuitOpen):
            service.start()
        with pytest.raises(atoll.CircuitOpen):
            asyncio.run(service.whoami.aio())
        with pytest.raises(atoll.CircuitOpen):
            service.whoami.submit().result(WITHIN)
        with pytest.raises(atoll.CircuitOpen):
            list(service.whoami.map([1]))
        assert len(fragile.starts) == 5
        open_now = {metric.name: metric.samples for metric in service.metrics()}["atoll_breaker_open"]
        assert [sample.value for sample in open_now] == [1]


def test_half_open_tries_one_and_recovers(fragile: Fragile) -> None:
    service = atoll.Service(
        fragile.file,
        workers=2,
        restart={"backoff": 0.01},
        breaker={"failures": 4, "cooldown": 0.3},
        **fragile.options,
    )
    with service:
        fragile.breaks()
        for pid in until(lambda: len(ready(service)) == 2 and ready(service)):
            os.kill(pid, signal.SIGKILL)
        until(lambda: service.status().state == "open")
        failed = len(fragile.starts)
        reasons = Counter[str]()

        def refused() -> bool:
            try:
                service.whoami()
            except (atoll.CircuitOpen, atoll.WorkerDied) as error:
                reasons[str(error)] += 1
            return any("the worker that was tried failed too" in reason for reason in reasons)

        until(refused)
        assert len(fragile.starts) >= failed + 1
        fragile.mended()

        def served() -> bool:
            try:
                return bool(service.whoami())
            except atoll.CircuitOpen:
                return False

        until(served)
        until(lambda: service.status().state == "running" and len(ready(service)) == 2)
        assert service.whoami() in ready(service)


def test_waiting_callers_are_refused_when_it_opens(fragile: Fragile) -> None:
    """Eight callers, nobody to serve them: each is told within the time that failing takes, none waits for ever."""
    service = atoll.Service(
        fragile.file, restart={"backoff": 0.01}, breaker={"failures": 3, "cooldown": 60}, **fragile.options
    )
    with service:
        first = service.whoami()
        fragile.breaks()
        with Callers(8, service.whoami) as callers:
            os.kill(first, signal.SIGKILL)
            until(lambda: sum(isinstance(error, atoll.CircuitOpen) for error in callers.errors) >= 16)
        assert {type(error) for error in callers.errors} <= {atoll.CircuitOpen, atoll.WorkerDied}


def test_a_crash_loop_opens_the_breaker_although_calls_succeed_in_between(gates: Gates) -> None:
    service = atoll.Service(
        gates.file, restart={"max_restarts": 3, "window": 600}, breaker={"cooldown": 60}, **gates.options
    )
    with service:
        for _ in range(4):
            service.whoami()
            with pytest.raises(atoll.WorkerDied):
                service.exit(9)
        with pytest.raises(atoll.CircuitOpen, match=r"crash loop: another end after 3 restarts within 600 s: .*code 9"):
            service.whoami()


# -- one that says nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["idle", "in a call"])
def test_a_stopped_worker_is_found(gates: Gates, when: str) -> None:
    with atoll.Service(gates.file, health_interval=0.5, **gates.options) as service:
        first = service.whoami()
        call = service.hold.submit() if when == "in a call" else None
        if call is not None:
            until(lambda: gates.held == 1)
        os.kill(first, signal.SIGSTOP)
        until_gone(first)
        gates.open()
        if call is not None:
            death = call.exception(WITHIN)
            assert isinstance(death, atoll.WorkerDied)
            assert "no answer for" in str(death)
        until(lambda: ready(service))
        assert service.whoami() != first
        assert restarts(service) == {"unresponsive": 1}


def test_a_call_that_holds_the_interpreter_lock_in_c_is_left_alone(gates: Gates) -> None:
    """It answers no ping for much longer than three intervals, but it works."""
    with atoll.Service(gates.file, health_interval=0.4, **gates.options) as service:
        first = service.pid
        assert service.burn(120_000_000) == (first, 120_000_000 * 119_999_999 // 2)
        assert service.pid == first
        assert restarts(service) == {}


def test_a_worker_that_sleeps_in_a_call_answers_beside_it(gates: Gates) -> None:
    with atoll.Service(gates.file, health_interval=0.5, **gates.options) as service:
        first = service.pid
        service.sleep(2.5)
        assert service.whoami() == first


# -- calling again -------------------------------------------------------------------------------------------------

TWICE = """\
import os
from pathlib import Path
from atoll_worker import expose

folder = Path(os.environ["FOLDER"])

def die(times):
    deaths = len(list(folder.glob("death-*")))
    if deaths < times:
        (folder / f"death-{deaths}").touch()
        os._exit(4)

@expose(idempotent=True)
def again(times):
    die(times)
    return times

@expose
def once(times):
    die(times)
    return times
"""


@pytest.fixture
def twice(write: Write, tmp_path: Path) -> Any:
    with atoll.Service(write("twice.py", TWICE), env_vars={"FOLDER": str(tmp_path)}) as service:
        yield service


def test_an_idempotent_function_is_called_again(twice: atoll.Service) -> None:
    assert twice.again.options(retries=2)(2) == 2


def test_as_often_as_was_said_and_no_more(twice: atoll.Service) -> None:
    with pytest.raises(atoll.WorkerDied, match="code 4"):
        twice.again.options(retries=1)(2)
    assert twice.again(2) == 2


def test_calling_again_awaited_submitted_and_mapped(twice: atoll.Service, tmp_path: Path) -> None:
    again = twice.again.options(retries=2)
    assert asyncio.run(again.aio(2)) == 2
    for death in tmp_path.glob("death-*"):
        death.unlink()
    assert again.submit(1).result(WITHIN) == 1
    for death in tmp_path.glob("death-*"):
        death.unlink()
    assert list(again.map([1, 2])) == [1, 2]


def test_without_retries_the_death_is_the_callers(twice: atoll.Service) -> None:
    with pytest.raises(atoll.WorkerDied):
        twice.again(1)


def test_another_function_is_never_called_again(twice: atoll.Service, tmp_path: Path) -> None:
    with pytest.raises(atoll.ManifestError, match=r"twice\.once: the function is not marked as idempotent"):
        twice.once.options(retries=1)(1)
    assert not list(tmp_path.glob("death-*"))  # not even once
    with pytest.raises(atoll.ManifestError, match="not marked as idempotent"):
        list(twice.once.options(retries=1).map([1]))


# -- one that cannot be started ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_code_that_cannot_be_loaded_is_told_to_each_caller_until_it_is_mended(write: Write, workers: int) -> None:
    file = write("broken.py", "1 / 0")
    service = atoll.Service(file, workers=workers)
    for _ in range(3):
        with pytest.raises(atoll.WorkerStartError, match="ZeroDivisionError"):
            service.whoami()
    with pytest.raises(atoll.WorkerStartError, match="ZeroDivisionError"):
        service.start()
    write("broken.py", "import os\nfrom atoll_worker import expose\n@expose\ndef whoami():\n    return os.getpid()\n")
    assert service.whoami() in ready(service)
    service.close()


def test_all_who_wait_are_told(write: Write) -> None:
    service = atoll.Service(write("broken.py", "import time\ntime.sleep(0.3)\n1 / 0"), workers=2)
    errors: list[BaseException] = []
    started = threading.Barrier(8)

    def call() -> None:
        started.wait()
        try:
            service.whoami()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert [type(error) for error in errors] == [atoll.WorkerStartError] * 8


def test_an_environment_that_cannot_be_had_is_told_to_all_who_wait(write: Write, tmp_path: Path) -> None:
    file = write("plain.py", "from atoll_worker import expose\n@expose\ndef one():\n    return 1\n")
    (tmp_path / "nowhere").mkdir()
    service = atoll.Service(file, environment=tmp_path / "nowhere", workers=2)
    with Callers(4, service.one) as callers:
        until(lambda: len(callers.errors) >= 8)
    assert not callers.results
    assert all(isinstance(error, atoll.ManifestError) for error in callers.errors)
    assert "nowhere" in str(callers.errors[0])


@pytest.mark.network
@pytest.mark.slow
def test_an_environment_that_cannot_be_built(write: Write) -> None:
    file = write("plain.py", "from atoll_worker import expose\n@expose\ndef one():\n    return 1\n")
    service = atoll.Service(file, dependencies=["idna==0.0.987654"])
    for _ in range(2):
        with pytest.raises(atoll.ResolutionError, match=r"idna"):
            service.one()
    assert service.status().workers == ()


def test_killed_while_it_starts(gates: Gates, tmp_path: Path) -> None:
    """The caller is told, or gets another worker; it does not hang."""
    file = tmp_path / "slow.py"
    file.write_text(
        "import os, time\nfrom pathlib import Path\nfrom atoll_worker import expose\n"
        f"mark = Path({str(tmp_path)!r}) / 'starting'\n"
        "if not mark.exists():\n    mark.write_text(str(os.getpid()))\n    time.sleep(60)\n"
        "@expose\ndef whoami():\n    return os.getpid()\n"
    )
    service = atoll.Service(file)
    call = service.whoami.submit()
    mark = tmp_path / "starting"
    until(lambda: mark.exists() and mark.read_text())
    os.kill(int(mark.read_text()), signal.SIGKILL)
    error = call.exception(WITHIN)
    assert error is None or isinstance(error, atoll.WorkerDied)
    assert service.whoami() == service.pid
    assert is_gone(int(mark.read_text()))
    service.close()
