# SPDX-License-Identifier: Apache-2.0
"""Every program in examples/ runs, and says what its page promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from client.rungs import UNHURRIED

EXAMPLES = Path(__file__).parents[2] / "examples"

_PARTS = {"services", "nodes"}  # folders of what programs load

# As ``python PROGRAM``, but that a busy machine costs none of them a worker that is told to end its call, nor what one
# said last.
_RUN = f"""
{UNHURRIED}
import atoll.processes.process as process
process._LAST_WORDS = 60.0

import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""

SAYS = {
    "two_numpys.py": ["made with numpy 1.26.4, summed with numpy 2.", "66.0 of (4, 3)"],
    "crash.py": ["2 4", "3 the worker died of signal 11 and said:\n    about to read address zero", "4 16"],
    "many_at_once.py": [
        "3 processes worked at the same time",
        "did not answer within 0.1 seconds",
        "and the worker goes on: True",
    ],
    "comfy_packs/host.py": [
        "grain   in process",
        "soften  in process",
        "numpy 1.26.4 on Python 3.",
        "numpy 2.",
        "used in the host alone: True",
    ],
    "photo/demo.py": ["No solution found", "numpy 1.26.4", "numpy 2.", "scikit-learn", "opencv 4.8.1", "photo.png"],
}


def test_every_example_is_tested() -> None:
    programs = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py") if not _PARTS & {*path.parts}}
    assert programs == set(SAYS)


@pytest.mark.network
@pytest.mark.parametrize("program", sorted(SAYS))
def test_example_runs(program: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(EXAMPLES / program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    for words in SAYS[program]:
        assert words in done.stdout


def test_the_picture_of_the_demonstration_shows_three_different_images() -> None:
    import struct
    import zlib

    path = EXAMPLES / "photo" / "out" / "photo.png"
    if not path.exists():
        subprocess.run([sys.executable, str(EXAMPLES / "photo" / "demo.py")], check=True, capture_output=True)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert (depth, colour) == (8, 2)
    pixels, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            pixels += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(pixels)
    assert len(raw) == height * (1 + 3 * width)
    # Every third of a row in the middle differs from the other two: three pictures, not one.
    row = raw[height // 2 * (1 + 3 * width) + 1 :][: 3 * width]
    third = len(row) // 3
    assert len({row[:third], row[third : 2 * third], row[2 * third :]}) == 3
