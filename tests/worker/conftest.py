# SPDX-License-Identifier: Apache-2.0
"""Finds ``atoll_worker`` in the source tree where it is not installed, and forgets classes that a test registered."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if importlib.util.find_spec("atoll_worker") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Every test starts with the classes registered before it, and leaves no others."""
    from atoll_worker import registry

    before = dict(registry._by_class), dict(registry._by_name)
    yield
    for table, kept in zip((registry._by_class, registry._by_name), before, strict=True):
        table.clear()
        table.update(kept)  # type: ignore[arg-type]
