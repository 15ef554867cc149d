# SPDX-License-Identifier: Apache-2.0
"""Offline is a mode: what is ready works, and what is missing is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.environments import Environment, find_interpreter
from atoll.errors import InterpreterNotFound, OfflineError, ResolutionError

Open = Callable[..., Environment]

HOST = ".".join(map(str, sys.version_info[:3]))


@pytest.mark.network
def test_a_ready_environment_opens(open_for: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    key = open_for(dependencies=["six"]).key
    monkeypatch.setenv("ATOLL_OFFLINE", "1")
    assert open_for(dependencies=["six"]).key == key
    assert open_for(dependencies=["six"], offline=True).key == key


@pytest.mark.network
def test_another_environment_of_what_was_fetched_before_is_built(open_for: Open, cache: Path) -> None:
    from atoll.environments import prune_environments

    key = open_for(dependencies=["six"]).key
    prune_environments(everything=True)
    assert open_for(dependencies=["six"], offline=True).key == key


def test_what_needs_no_package_is_built(open_for: Open) -> None:
    assert open_for(python=HOST, offline=True).version == sys.version_info[:3]


def test_what_is_missing_is_named(open_for: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("ATOLL_OFFLINE", "true")
    with pytest.raises(OfflineError) as caught:
        open_for(dependencies=["six==1.17.0"])
    message = str(caught.value)
    assert "six" in message
    assert "unset ATOLL_OFFLINE" in message
    assert "Build it once with the network" in message
    (tmp_path / "lock.txt").write_text("six==1.17.0")
    with pytest.raises(OfflineError, match=r"six"):
        open_for(lock=tmp_path / "lock.txt")


def test_a_contradiction_is_no_matter_of_the_network(
    open_for: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    with pytest.raises(ResolutionError, match="unsatisfiable"):
        open_for(dependencies=["six==1.16.0", "six==1.17.0"], offline=True)


def test_an_interpreter_that_would_have_to_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OfflineError, match=r"no interpreter.*'3\.99'; seen were(?s:.*)offline mode is on"):
        find_interpreter("3.99", offline=True)
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    with pytest.raises(InterpreterNotFound, match=r"3\.99(?s:.*)uv could not fetch one either"):
        find_interpreter("3.99", offline=False)


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("yes", True), ("0", False), ("false", False), ("", False)]
)
def test_the_variable(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool) -> None:
    from atoll.environments.interpreters import is_offline

    monkeypatch.setenv("ATOLL_OFFLINE", value)
    assert is_offline(None) is offline
    assert is_offline(not offline) is not offline
