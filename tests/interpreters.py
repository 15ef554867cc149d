# SPDX-License-Identifier: Apache-2.0
"""The Pythons that there are on this machine, for tests of workers that run others than this one."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys

OLDEST = (3, 9)


def find_interpreters() -> dict[str, str]:
    """One interpreter per minor version from 3.9 on: pyenv's, those on PATH, and the one that runs this."""
    candidates = [sys.executable, *sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3")))]
    candidates += filter(None, (shutil.which(f"python3.{minor}") for minor in range(9, 15)))
    found: dict[str, str] = {}
    for path in candidates:
        asked = subprocess.run(
            [path, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
        )
        version = asked.stdout.strip()
        if asked.returncode == 0 and tuple(map(int, version.split("."))) >= OLDEST:
            found.setdefault(version, path)
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


INTERPRETERS = find_interpreters()
