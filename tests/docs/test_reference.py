# SPDX-License-Identifier: Apache-2.0
"""What is generated is not behind the code: docs/reference.md, which names everything public, and the diagram."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import atoll
import atoll_worker

DOCS = Path(__file__).parents[2] / "docs"


def test_nothing_generated_is_behind_the_code() -> None:
    done = subprocess.run([sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_everything_public_is_in_the_reference() -> None:
    page = (DOCS / "reference.md").read_text()
    for module in (atoll, atoll_worker):
        for name in module.__all__:
            if not name.startswith("__"):
                assert f"`{module.__name__}.{name}`" in page


def test_the_diagram_names_every_state_and_event() -> None:
    from atoll.pool.lifecycle import PoolEvent, PoolState, WorkerEvent, WorkerState

    root = ElementTree.parse(DOCS / "supervision.svg").getroot()
    drawn = " ".join("".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text"))
    for names in (WorkerState, WorkerEvent, PoolState, PoolEvent):
        for name in names:
            assert all(part in drawn for part in name.split(", ")), name
