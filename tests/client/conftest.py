# SPDX-License-Identifier: Apache-2.0
"""For the tests of what users hold: writing a service's file, listening to what workers print."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file below ``tmp_path``, its text dedented."""

    def write_file(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    return write_file


class Records(logging.Handler):
    """Every record that a logger got."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, stream: str | None = None) -> list[str]:
        """The messages, of one stream if given."""
        return [
            record.getMessage()
            for record in list(self.records)
            if stream is None or record.stream == stream  # type: ignore[attr-defined]
        ]


@pytest.fixture
def printed() -> Iterator[Records]:
    """What workers print during a test."""
    handler = Records()
    logger = logging.getLogger("atoll.worker")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
