# SPDX-License-Identifier: Apache-2.0
"""For all tests: nothing that a test starts is left when it ends (``leaks``), and no class that it registered; and no
test of Hypothesis fails since the machine was busy."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from atoll_worker import registry

pytest_plugins = ["leaks"]

# An example may take as long as the machine makes it: what is left is the time that every test has.
settings.register_profile("atoll", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("atoll")


def pytest_configure() -> None:
    """Programs that tests start hear the signals that a terminal sends, also where whoever runs the tests ignores them:
    a shell's background job, ``nohup``."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Every test starts with the classes registered before it, and leaves no others."""
    before = dict(registry._by_class), dict(registry._by_name)
    yield
    for table, kept in zip((registry._by_class, registry._by_name), before, strict=True):
        table.clear()
        table.update(kept)  # type: ignore[arg-type]
