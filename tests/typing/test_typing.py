# SPDX-License-Identifier: Apache-2.0
"""mypy --strict and pyright see what ``right.py`` says they see, and refuse every marked line of ``wrong.py``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
FILES = [HERE / "right.py", HERE / "wrong.py"]


@pytest.fixture
def with_a_mistake(tmp_path: Path) -> list[Path]:
    """Two files that are not right: to see that the checkers do look."""
    false = tmp_path / "false_assertion.py"
    false.write_text("import atoll\nfrom typing import assert_type\n@atoll.function\ndef f(x: int) -> str:\n"
                     "    return ''\nassert_type(f(1), int)\n")  # fmt: skip
    needless = tmp_path / "needless_ignore.py"
    needless.write_text("x: int = 1  # type: ignore[assignment]\n")
    return [false, needless]


def mypy(files: list[Path], tmp_path: Path) -> list[str]:
    """The errors mypy finds."""
    if find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--show-error-codes", "--no-error-summary"]
    command += ["--warn-unused-ignores", "--cache-dir", str(tmp_path / "cache"), *map(str, files)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return sorted(line for line in done.stdout.splitlines() if ": error:" in line)


def pyright(files: list[Path], tmp_path: Path) -> list[str]:
    """The errors pyright finds."""
    if find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    for file in files:
        if file.parent != tmp_path:
            shutil.copy(file, tmp_path)  # it looks at files below its project only
    config = {
        "include": [file.name for file in files],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "reportUnknownMemberType": "none",  # attributes of a Service are made at run time
        "reportUnknownVariableType": "none",
        "reportUnknownLambdaType": "none",
        "reportUnusedCoroutine": "none",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        # The Python package fetches pyright itself, and node where there is none.
        pytest.skip(f"pyright cannot run here: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    assert answer["summary"]["filesAnalyzed"] == len(files)
    return [
        f"{one['file']}:{one['range']['start']['line'] + 1}: {one['message']} [{one.get('rule', '')}]"
        for one in answer["generalDiagnostics"]
        if one["severity"] == "error"
    ]


@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_the_checker_agrees(checker: Any, tmp_path: Path) -> None:
    errors = checker(FILES, tmp_path)
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_the_checker_does_look(checker: Any, with_a_mistake: list[Path], tmp_path: Path) -> None:
    errors = checker(with_a_mistake, tmp_path)
    assert len(errors) == 2
    assert "false_assertion.py:6" in errors[0]
    assert "needless_ignore.py:1" in errors[1]
