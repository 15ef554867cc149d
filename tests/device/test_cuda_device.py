# SPDX-License-Identifier: Apache-2.0
"""Arrays of a real CUDA device, where there is one: ``cuda_device_checks`` is run, and what it prints is shown.

``ATOLL_TEST_CUDA`` names a Python that has torch with CUDA, if that is not this one::

    ATOLL_TEST_CUDA=/path/to/python .venv/bin/pytest tests/device -s

``tests/worker/test_cuda.py`` says the same, with a stand-in for the driver, everywhere.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("cuda_device_checks.py")
NOTHING_TO_CHECK_WITH = 77


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_arrays_of_a_device() -> None:
    if "ATOLL_TEST_CUDA" not in os.environ and importlib.util.find_spec("torch") is None:
        pytest.skip(f"{sys.executable} has no torch, and ATOLL_TEST_CUDA names no Python that has it with CUDA")
    ran = subprocess.run(
        [os.environ.get("ATOLL_TEST_CUDA", sys.executable), str(CHECKS)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
        timeout=580,
    )
    print(ran.stdout)
    if ran.returncode == NOTHING_TO_CHECK_WITH:
        pytest.skip(ran.stdout.strip())
    assert ran.returncode == 0, ran.stdout + ran.stderr
