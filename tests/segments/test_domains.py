# SPDX-License-Identifier: Apache-2.0
"""Memory that one worker can write to, or that one in a sandbox has seen, never carries another one's data."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from atoll_worker.segments import store

SERVICE = """\
    import gc
    import numpy as np
    from atoll_worker import expose
    from atoll_worker.arrays import Shared

    mappings = []

    @expose
    def total(x):
        return float(x.sum())

    @expose
    def fill(value, out=None):
        out[...] = value

    @expose
    def keep_what_can_be_written_to():
        \"\"\"As no honest worker does.\"\"\"
        from atoll_worker import loans
        mappings.extend(
            one.shared for one in gc.get_objects() if type(one) is loans.Borrowed and one.shared is not None
        )
        return len(mappings)

    @expose
    def keep_what_can_be_read():
        from atoll_worker import loans
        mappings.extend(
            loans.Mapping(one).memory for one in gc.get_objects() if type(one) is loans.Borrowed
        )
        return len(mappings)

    @expose
    def spoil():
        for memory in mappings:
            memory[:] = b"\\x07" * len(memory)

    @expose
    def sees(byte):
        return any(memory.find(bytes([byte])) >= 0 for memory in mappings)
"""
Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "service.py").write_text(textwrap.dedent(SERVICE))
    services = []

    def start(**options: Any) -> atoll.Service:
        service = atoll.Service(tmp_path / "service.py", environment=sys.prefix, **options)
        services.append(service)
        return service

    store.trim()
    yield start
    for service in services:
        service.close()


@pytest.mark.parametrize("plain", [True, False], ids=["a plain array", "a shared one"])
def test_who_was_lent_memory_to_write_to_cannot_change_anothers_data(start: Start, plain: bool) -> None:
    evil, good = start(), start()
    for _ in range(3):
        out = np.zeros(1_000_000, "u1") if plain else atoll.empty(1_000_000, "u1")
        evil.fill(1, out=out)
        assert out.sum() == 1_000_000
        del out
    assert evil.keep_what_can_be_written_to() >= 1
    data = np.ones(1_000_000, "u1")
    for _ in range(5):
        shared = atoll.asarray(data)
        evil.spoil()
        assert good.total(shared) == 1_000_000
        assert good.total(data) == 1_000_000
        del shared


def test_memory_to_write_to_serves_the_same_worker_again(start: Start) -> None:
    service = start()
    out = np.zeros(1_000_000, "u1")
    service.fill(1, out=out)
    made = atoll.memory().created
    for value in range(10):
        service.fill(value, out=out)
        assert out[0] == out[-1] == value
    assert atoll.memory().created == made


def test_who_is_in_a_sandbox_sees_what_is_its_own(start: Start) -> None:
    shut_in, other = start(sandbox={}), start()
    before = np.full(1_000_000, 9, "u1")
    assert other.total(before) == 9_000_000
    assert shut_in.total(np.ones(500_000, "u1")) == 500_000
    shared = atoll.empty(1_000_000, "u1")
    shared[:] = 1
    assert shut_in.total(shared) == 1_000_000
    del shared
    assert shut_in.keep_what_can_be_read() >= 2
    assert not shut_in.sees(9), "left by another service's call"
    for _ in range(5):
        assert other.total(before) == 9_000_000
        assert not shut_in.sees(9)
