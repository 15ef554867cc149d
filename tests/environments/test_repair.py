# SPDX-License-Identifier: Apache-2.0
"""Environments that lost their interpreter, their packages or their marker are noticed at opening and made whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.environments import Environment, list_environments, prune_environments
from atoll.environments import build as build_module
from atoll.environments import lock as lock_module
from atoll.errors import BuildError

from .conftest import nothing_half_made, python_says

Open = Callable[..., Environment]

HOST = ".".join(map(str, sys.version_info[:3]))


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on, building fails the test."""

    def build(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing should have been built")

    return lambda: monkeypatch.setattr(build_module, "build", build)


def _interpreter_gone(folder: Path) -> None:
    python = folder / "venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/no/longer/there/python")


def _marker_gone(folder: Path) -> None:
    (folder / "record.json").unlink()


def _packages_gone(folder: Path) -> None:
    shutil.rmtree(folder / "venv" / "lib")


def _all_gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("damage", [_interpreter_gone, _marker_gone, _packages_gone, _all_gone])
def test_damage_is_repaired(open_for: Open, cache: Path, damage: Callable[[Path], None]) -> None:
    key = open_for(python=HOST).key
    damage(cache / "environments" / key)
    environment = open_for(python=HOST)
    assert environment.key == key
    assert python_says(environment, "print('works')") == "works"
    assert nothing_half_made(cache)


@pytest.mark.network
def test_a_repair_installs_the_lock_that_is_known(open_for: Open, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_for(dependencies=["six"])
    _interpreter_gone(cache / "environments" / before.key)

    def run_uv(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing should have been resolved")

    monkeypatch.setattr(lock_module, "run_uv", run_uv)
    after = open_for(dependencies=["six"])
    assert (after.key, after.pinned) == (before.key, before.pinned)


def test_another_build_of_the_same_version_is_no_damage(
    open_for: Open, cache: Path, no_build: Callable[[], None]
) -> None:
    key = open_for(python=HOST).key
    marker = cache / "environments" / key / "record.json"
    record = json.loads(marker.read_text())
    record["interpreter"]["stamp"] = "what the file was before a security update"
    marker.write_text(json.dumps(record))
    no_build()
    assert open_for(python=HOST).key == key
    assert json.loads(marker.read_text())["interpreter"]["stamp"] != record["interpreter"]["stamp"]


def test_damaged_ones_are_not_listed_and_are_pruned(open_for: Open, cache: Path) -> None:
    folder = cache / "environments" / open_for(python=HOST).key
    _marker_gone(folder)
    assert list_environments() == []
    assert prune_environments().leftovers == 1
    assert os.listdir(cache / "environments") == []


def test_lost_locks_and_probes_do_not_matter(open_for: Open, cache: Path, no_build: Callable[[], None]) -> None:
    key = open_for(python=HOST).key
    no_build()
    for name in ("locks", "probes", "building"):
        shutil.rmtree(cache / name, ignore_errors=True)
    assert open_for(python=HOST).key == key
    shutil.rmtree(cache / "requests")  # then it is found again by its lock
    assert open_for(python=HOST).key == key


@pytest.mark.network
def test_a_lost_package_is_noticed_and_installed_again(
    open_for: Open, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_for(dependencies=["six"])
    (Path(before.site_packages[0]) / "six.py").unlink()
    after = open_for(dependencies=["six"])
    assert (after.key, after.pinned) == (before.key, before.pinned)
    assert python_says(after, "import six; print(six.__name__)") == "six"
    (warning,) = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert warning == (
        f"environment {before.key} is damaged (six.py is missing from its packages): installing it again"
    )
    assert nothing_half_made(cache)


def test_a_record_that_does_not_tell_its_contents_is_trusted(
    open_for: Open, cache: Path, no_build: Callable[[], None]
) -> None:
    key = open_for(python=HOST).key
    marker = cache / "environments" / key / "record.json"
    record = json.loads(marker.read_text())
    del record["contents"]
    marker.write_text(json.dumps(record))
    no_build()
    assert open_for(python=HOST).key == key


def _a_file(cache: Path) -> None:
    cache.write_text("")


def _a_folder_that_cannot_be_made(cache: Path) -> None:
    cache.symlink_to("/proc/atoll")


@pytest.mark.parametrize("spoil", [_a_file, _a_folder_that_cannot_be_made])
def test_an_unusable_cache_is_said(open_for: Open, cache: Path, spoil: Callable[[Path], None]) -> None:
    spoil(cache)
    with pytest.raises(
        BuildError, match=f"service 'mean': the cache folder {cache} cannot be used: .*; set ATOLL_CACHE_DIR"
    ):
        open_for(python=HOST)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("name", ["rename", "replace", "makedirs"])
def test_a_disk_that_refuses_is_said(
    open_for: Open, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    def refuse(path: str, *arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(BuildError, match=f"cache folder {cache} cannot be used: {os.strerror(number)}"):
        open_for(python=HOST)
