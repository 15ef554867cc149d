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


STUBBED = '''\
"""Finds things."""
from collections import deque
from typing import Callable, Dict, Iterator, List, Literal, Optional, Tuple, TypedDict, Union
import datetime
import re
import numpy as np
import torch
from atoll_worker import Service, expose

Box = Tuple[int, int, int, int]

class Found(TypedDict, total=False):
    label: str
    box: Box
    inner: "List[Found]"

@expose
def detect(image: np.ndarray, threshold: float = 0.5, *, labels: Optional[List[str]] = None) -> List[Found]:
    """Find things."""

@expose
def tensors(x: torch.Tensor, y: Union[torch.Tensor, int] = 3) -> Dict[str, torch.Tensor]: ...

@expose
def bare(a, b=[], /, c: dict = {}, *rest: tuple,
         when: datetime.datetime = None, kind: Literal["a", 1] = "a", **more): ...

@expose
def bare_generics(a: List, b: Dict, c: Callable, d: re.Pattern,
                  e: deque, f: Iterator, g: np.floating, h: type) -> set: ...

@expose
async def slow(seconds: float) -> str: ...

@expose
def frames(n: int) -> Iterator[int]:
    yield n

class Counter(Service):
    @expose
    def list(self, self_: int) -> "list[int]": ...
'''

RIGHT_CALLS = """\
import datetime
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, assert_type

import numpy
from atoll.client.submitter import Call
from vision_client import Vision, connect

if TYPE_CHECKING:
    from vision_client import Found

image = numpy.zeros((2, 2))
with connect(timeout=3) as vision:
    assert_type(vision, Vision)
    assert_type(vision.pid, int | None)
    assert_type(vision.detect(image, threshold=1, labels=["a"]), list["Found"])
    assert_type(vision.detect.submit(image, 0.1), Call[list["Found"]])
    assert_type(vision.detect.map([image], [0.1]), Iterator[list["Found"]])
    assert_type(vision.detect.options(timeout=3)(image=image), list["Found"])
    assert_type(vision.tensors(1), dict[str, Any])
    assert_type(vision.slow(1), str)
    assert_type(vision.list(3), list[int])
    vision.bare(1, 2, {3: 4}, (5,), (6, 7), when=datetime.datetime.now(), kind=1, anything=8)
    for number in vision.frames(3):
        assert_type(number, int)


async def awaited() -> None:
    assert_type(await vision.slow.aio(1), str)
"""

WRONG_CALLS = """\
from vision_client import connect

vision = connect()
vision.detect("image")  # type: ignore
vision.detect(treshold=3)  # type: ignore
vision.detect()  # type: ignore
vision.slow.submit("")  # type: ignore
vision.slow.map(["a"])  # type: ignore
vision.detekt(1)  # type: ignore
vision.detekt()  # type: ignore
vision.bare(a=1)  # type: ignore
vision.bare(1, kind="b")  # type: ignore
vision.list("")  # type: ignore
connect(timeot=3)  # type: ignore
connect(timeout="")  # type: ignore
"""


@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_the_client_that_stubs_writes(checker: Any, tmp_path: Path) -> None:
    from atoll.client.stubs import client_module

    service = tmp_path / "services" / "vision.py"
    service.parent.mkdir()
    service.write_text(STUBBED)
    client = tmp_path / "vision_client.py"
    client.write_text(client_module(str(service), str(client)))
    right, wrong = tmp_path / "right_calls.py", tmp_path / "wrong_calls.py"
    right.write_text(RIGHT_CALLS)
    wrong.write_text(WRONG_CALLS)
    errors = checker([client, right, wrong], tmp_path)
    assert not errors, "\n".join(errors)
