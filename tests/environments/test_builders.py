# SPDX-License-Identifier: Apache-2.0
"""Several builders at once, and builders that are killed: one build, and nothing half-made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.environments import Environment, EnvironmentRequest, list_environments
from atoll.environments import build as build_module
from atoll.environments.cache import Lock, build_folders

from .conftest import nothing_half_made, python_says

Open = Callable[..., Environment]
Start = Callable[..., subprocess.Popen[str]]

HOST = ".".join(map(str, sys.version_info[:3]))

# Says "built" for each real build, and opens when told to.
_BUILDER = f"""
import atoll.environments.build as module
from atoll.environments import EnvironmentRequest, open_environment
real = module.build
def build(*arguments, **options):
    print("built", flush=True)
    return real(*arguments, **options)
module.build = build
print("ready", flush=True)
sys.stdin.readline()
environment = open_environment(EnvironmentRequest("packages", "mean", python="{HOST}"))
print("key", environment.key, flush=True)
"""


def test_two_processes_at_once_build_once(start: Start, cache: Path) -> None:
    builders = [start(_BUILDER) for _ in range(3)]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "ready\n"
    for builder in builders:
        assert builder.stdin is not None
        builder.stdin.write("go\n")
        builder.stdin.flush()
    outputs = []
    for builder in builders:
        output, errors = builder.communicate(timeout=120)
        assert builder.returncode == 0, errors
        outputs.append(output.split())
    assert sum(output.count("built") for output in outputs) == 1
    assert len({output[-1] for output in outputs}) == 1
    assert nothing_half_made(cache)


def test_threads_at_once_build_once(open_for: Open, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[str] = []
    real = build_module.build

    def build(*arguments: object, **options: object) -> object:
        builds.append(threading.current_thread().name)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(build_module, "build", build)
    keys: list[str] = []
    threads = [threading.Thread(target=lambda: keys.append(open_for(python=HOST).key)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(keys) == 4
    assert len(set(keys)) == 1
    assert len(builds) == 1
    assert nothing_half_made(cache)


# Kills itself at a moment that is named by the first argument.
_KILLED = f"""
import os, signal
moment = "MOMENT"
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def dying(real, when=lambda *arguments: True):
    def function(*arguments, **options):
        if when(*arguments):
            die()
        return real(*arguments, **options)
    return function
import atoll.environments.build as build
import atoll.environments.cache as cache
import atoll.environments.opening as opening
import atoll.environments.progress as progress
if moment.startswith("stage "):
    progress.Progress.stage = dying(progress.Progress.stage, lambda _, name: name == moment[6:])
elif moment == "line":
    progress.Progress.line = die
elif moment == "record":
    build.write_record = die
elif moment == "half a record":
    cache.os.replace = dying(os.replace, lambda source, target: target.endswith("/record.json"))
elif moment == "publish":
    build.os.rename = die
elif moment == "request":
    opening.write_record = die
from atoll.environments import EnvironmentRequest, open_environment
open_environment(EnvironmentRequest("packages", "mean", python="{HOST}", dependencies=DEPENDENCIES))
"""

_MOMENTS = ["stage making the environment", "line", "stage checking", "record", "half a record", "publish", "request"]


@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_killed_builder_leaves_nothing_half_made(moment: str, start: Start, open_for: Open, cache: Path) -> None:
    killed = start(_KILLED.replace("MOMENT", moment).replace("DEPENDENCIES", "()"))
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    # Nobody may see what it left: only where it had already published is there an environment, and then a whole one.
    assert len(list_environments()) == (1 if moment == "request" else 0)
    environment = open_for(python=HOST)
    assert python_says(environment, "print('works')") == "works"
    assert nothing_half_made(cache)
    assert len(list_environments()) == 1


@pytest.mark.network
@pytest.mark.parametrize("moment", ["stage resolving", "stage installing", "line"])
def test_the_same_with_packages(moment: str, start: Start, open_for: Open, cache: Path) -> None:
    killed = start(_KILLED.replace("MOMENT", moment).replace("DEPENDENCIES", "('six',)"))
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert list_environments() == []
    environment = open_for(python=HOST, dependencies=["six"])
    assert python_says(environment, "import six; print('works')") == "works"
    assert nothing_half_made(cache)


def test_the_installer_of_a_killed_builder_is_waited_for(start: Start, cache: Path) -> None:
    """It may still write, so its folder is not swept under its hands: it inherited the lock."""
    holder = start(
        """
import os, signal, subprocess
from atoll.environments.cache import Lock, new_build_folder
lock = Lock("environment-some-key")
lock.acquire()
new_build_folder("some-key")
child = subprocess.Popen(["sh", "-c", "echo started; read line"], pass_fds=(lock.fd,))
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "started\n"
    holder.wait(60)
    assert len(build_folders()) == 1
    assert build_module.sweep() == 0
    assert not Lock("environment-some-key").acquire(wait=False)
    assert holder.stdin is not None
    holder.stdin.close()  # the orphan reads its end
    with Lock("environment-some-key"):
        assert build_module.sweep("some-key") == 1
    assert build_folders() == []


def test_an_interrupted_builder_takes_its_installer_along(start: Start, cache: Path, tmp_path: Path) -> None:
    fake = tmp_path / "uv"
    fake.write_text("#!/bin/sh\necho started $$ >&2\nexec sleep 600\n")
    fake.chmod(0o755)
    builder = start(
        f"""
import atoll.environments.uv_command as command
import atoll.environments.progress as progress
command.find_uv = lambda: {str(fake)!r}
progress.Progress.line = lambda self, text: print(text, flush=True)
from atoll.environments import EnvironmentRequest, open_environment
open_environment(EnvironmentRequest("packages", "mean", python="{HOST}"))
"""
    )
    assert builder.stdout is not None
    word, pid = builder.stdout.readline().split()
    assert word == "started"
    builder.send_signal(signal.SIGINT)
    _, errors = builder.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert nothing_half_made(cache)


def test_any_builder_sweeps_what_others_left(open_for: Open, cache: Path) -> None:
    (cache / "building" / "3.11.7-0123456789abcdef-123-abcd" / "venv").mkdir(parents=True)
    open_for(python=HOST)
    assert nothing_half_made(cache)


def test_a_request_object_is_the_same_from_anywhere(
    start: Start, request_for: Callable[..., EnvironmentRequest]
) -> None:
    digest = request_for(python=HOST).digest()
    program = start(
        "from atoll.environments import EnvironmentRequest\n"
        f"print(EnvironmentRequest('packages', 'another name', python='{HOST}').digest())\n"
    )
    output, errors = program.communicate(timeout=60)
    assert output.strip() == digest, errors
