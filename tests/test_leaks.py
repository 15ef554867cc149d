# SPDX-License-Identifier: Apache-2.0
"""The plugin that finds what tests leave behind does find it, names it, and is content where nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import leaks

TESTS = Path(__file__).resolve().parent


def run(tmp_path: Path, body: str, patience: float) -> subprocess.CompletedProcess[str]:
    """Run one test that consists of ``body`` under the plugin."""
    indented = "\n".join("    " + line for line in body.splitlines())
    head = f"import os, subprocess, sys, threading, time\nimport leaks\nleaks.PATIENCE = {patience}\nkept = []\n"
    (tmp_path / "test_one.py").write_text(f"{head}def test_it():\n{indented}\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "leaks", "-p", "no:cacheprovider", "test_one.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=300,
    )


LEFT = {
    "process": (
        "kept.append(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)  # forgotten']))",
        "# forgotten)",
    ),
    "orphan": (
        # Its parent ends once it is what it is to be: a shell's would still be a shell for a moment.
        "code = 'import subprocess; out = subprocess.DEVNULL; '\n"
        'code += \'subprocess.Popen(["sleep", "300.25"], stdout=out, stderr=out)\'\n'
        "subprocess.run([sys.executable, '-c', code])",
        "(sleep 300.25)",
    ),
    "descriptor": ("kept.append(os.open('/dev/zero', os.O_RDONLY))", "(/dev/zero)"),
    "lane": (
        "from atoll_worker import lane\nfd = lane.create()\nkept.append(lane.Lane(fd, True))\nos.close(fd)",
        "fast lane mapped at",
    ),
    "thread": (
        "threading.Thread(target=threading.main_thread().join, name='lost').start()",
        "thread 'lost'",
    ),
    "daemon thread": (
        "threading.Thread(target=time.sleep, args=(300,), name='lost', daemon=True).start()",
        ", daemon)",
    ),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_fails_the_test_and_is_named(tmp_path: Path, what: str) -> None:
    body, words = LEFT[what]
    done = run(tmp_path, body, patience=0.2)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed, 1 error" in done.stdout
    assert "the test left behind:" in done.stdout
    assert words in done.stdout
    for pid in re.findall(r"process (\d+) \(", done.stdout):
        os.kill(int(pid), signal.SIGKILL)  # adopted by this process by now


def test_a_clean_test_passes(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "import atoll\n"
        "@atoll.function\n"
        "def f(x):\n"
        "    return x + 1\n"
        "assert f(1) == 2\n"
        "assert f.submit(2).result() == 3\n"
        "thread = threading.Thread(target=f, args=(1,))\n"
        "thread.start()\n"
        "thread.join()\n"
        "subprocess.run(['true'])",
        patience=leaks.PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
