# SPDX-License-Identifier: Apache-2.0
"""Which interpreters are found, which is chosen, and what is said of the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.environments import all_interpreters, find_interpreter
from atoll.environments import interpreters as room
from atoll.errors import InterpreterNotFound

Fake = Callable[..., str]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the machine hold just these candidates, beside the host's own."""

    def only(*paths: str) -> None:
        candidates = [(room.host_executable(), "this process"), *((path, "PATH") for path in paths)]
        monkeypatch.setattr(room, "_candidates", lambda: iter(candidates))

    return only


def test_none_means_the_hosts_own_without_asking(cache: Path) -> None:
    found = find_interpreter(None)
    assert found.version == sys.version_info[:3]
    assert not cache.exists()


def test_what_it_says_of_itself_is_what_the_host_knows() -> None:
    known, asked = room.host_interpreter(), room.ask(room.host_executable())
    assert (known.version, known.implementation, known.abi, known.platform, known.prefix, known.stamp) == (
        (asked.version, asked.implementation, asked.abi, asked.platform, asked.prefix, asked.stamp)
    )
    assert known.identity == asked.identity


def test_the_hosts_own_goes_before_newer_ones(only: Callable[..., None], fake_interpreter: Fake) -> None:
    only(fake_interpreter("python3.99", "3.99.1"))
    assert find_interpreter(">=3.9").path == room.host_executable()


def test_else_the_newest_that_satisfies(only: Callable[..., None], fake_interpreter: Fake) -> None:
    older, newer = fake_interpreter("a", "3.97.1"), fake_interpreter("b", "3.97.10")
    only(older, newer, fake_interpreter("c", "3.98.0"))
    assert find_interpreter("3.97").path == newer
    assert find_interpreter("==3.97.1").path == older
    assert find_interpreter(">=3.97,<3.98").version == (3, 97, 10)


def test_what_is_not_taken_and_why(only: Callable[..., None], fake_interpreter: Fake) -> None:
    refused = {
        fake_interpreter("old", "3.8.18"): "Python 3.8.18: atoll's workers need Python 3.9 or newer",
        fake_interpreter("older", "2.7.18"): "Python 2.7.18: atoll's workers need",
        fake_interpreter("pypy", "3.97.0", implementation="pypy"): "pypy 3.97.0: not CPython",
        fake_interpreter("next", "3.97.0", phase=2, serial=1): "Python 3.97.0rc1: a pre-release",
        fake_interpreter("free", "3.97.0", free_threaded=True): "a free-threaded build",
        fake_interpreter("venv", "3.97.0", prefix="/x"): "belongs to a virtual environment",
        fake_interpreter("broken", script="#!/bin/sh\necho 'no module named encodings' >&2; exit 1\n"): (
            "did not answer as an interpreter does (exit status 1): no module named encodings"
        ),
        fake_interpreter("liar", script="#!/bin/sh\necho hello\n"): "did not answer as an interpreter does",
        fake_interpreter("strange", script="#!/no/such/interpreter\n"): "cannot be run",
        fake_interpreter("garbage", script="#!/bin/sh\necho 'atoll-interpreter:{'\n"): "did not answer",
    }
    only(*refused)
    with pytest.raises(InterpreterNotFound) as caught:
        find_interpreter(">=3.97", download=False, service="vision")
    message = str(caught.value)
    assert message.startswith("service 'vision': no interpreter on this machine satisfies python='>=3.97'; seen were:")
    for path, reason in refused.items():
        line = next(line for line in message.splitlines() if f" {path} " in line)
        assert reason in line
    assert (
        f"{room.host_executable()} (Python {room.host_interpreter().version_text}, which does not satisfy it)"
        in message
    )
    assert [one.path for one in all_interpreters()] == [room.host_executable()]


def test_by_path_even_what_is_not_taken_by_itself(fake_interpreter: Fake) -> None:
    assert find_interpreter(fake_interpreter("pypy", "3.10.14", implementation="pypy")).implementation == "pypy"
    assert find_interpreter(fake_interpreter("next", "3.97.0", phase=0, serial=2)).version_text == "3.97.0a2"
    with pytest.raises(InterpreterNotFound, match=r"is Python 3\.8\.18: atoll's workers need Python 3\.9 or newer"):
        find_interpreter(fake_interpreter("old", "3.8.18"))
    with pytest.raises(InterpreterNotFound, match="cannot be run: No such file"):
        find_interpreter("/no/such/python")


def test_each_is_asked_once_until_its_file_changes(fake_interpreter: Fake, tmp_path: Path) -> None:
    path = fake_interpreter("python", "3.96.0")
    counting = tmp_path / "count"
    Path(path).write_text(Path(path).read_text() + f"echo x >> {counting}\n")
    for _ in range(3):
        assert find_interpreter(path).version == (3, 96, 0)
    assert counting.read_text() == "x\n"
    os.utime(path, ns=(1, 1))
    assert find_interpreter(path).version == (3, 96, 0)
    assert counting.read_text() == "x\nx\n"
    fake_interpreter("python", "3.97.0")
    assert find_interpreter(path).version == (3, 97, 0)


def test_variables_of_the_shell_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert str(tmp_path) not in room.ask(room.host_executable()).import_path


def test_the_usual_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_interpreter: Fake) -> None:
    places = {
        "path/python3.19": "3.96.1",
        "pyenv/versions/3.97.1/bin/python3": "3.97.1",
        "uv/cpython-3.98.1-linux/bin/python3": "3.98.1",
    }
    for place, version in places.items():
        target = tmp_path / place
        target.parent.mkdir(parents=True)
        os.rename(fake_interpreter("x", version), target)
    shims = tmp_path / "pyenv" / "shims"
    shims.mkdir()
    os.rename(fake_interpreter("x", script="#!/bin/sh\nexit 127\n"), shims / "python3.19")
    monkeypatch.setenv("PATH", f"{shims}{os.pathsep}{tmp_path / 'path'}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    seen = {one.path: one for one in room.survey()}
    for place, version in places.items():
        interpreter = seen[str(tmp_path / place)].interpreter
        assert interpreter is not None
        assert interpreter.version_text == version
    assert seen[str(shims)].refusal == "pyenv's shims, which stand for the versions that are listed by themselves"
    assert find_interpreter("3.98").path == str(tmp_path / "uv/cpython-3.98.1-linux/bin/python3")


def test_one_file_is_one_interpreter() -> None:
    found = all_interpreters()
    assert len({os.path.realpath(one.path) for one in found}) == len(found)
    assert found == sorted(found, key=lambda one: one.version_key, reverse=True)
    assert any(one.version == sys.version_info[:3] for one in found)


def test_a_virtual_environment_on_path_is_not_taken_for_its_base(only: Callable[..., None], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    only(str(tmp_path / "venv" / "bin" / "python"))
    refusals = [one.refusal for one in room.survey()]
    assert refusals[0] is None
    assert re.search("belongs to a virtual environment", refusals[1] or "")
