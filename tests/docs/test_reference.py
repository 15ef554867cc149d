# SPDX-License-Identifier: Apache-2.0
"""docs/reference.md says what the docstrings say, and names everything public."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import atoll
import atoll_worker

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_not_behind_the_docstrings() -> None:
    done = subprocess.run([sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_everything_public_is_in_the_reference() -> None:
    page = (DOCS / "reference.md").read_text()
    for module in (atoll, atoll_worker):
        for name in module.__all__:
            if not name.startswith("__"):
                assert f"`{module.__name__}.{name}`" in page
