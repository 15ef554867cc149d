# SPDX-License-Identifier: Apache-2.0
"""Listing, showing, pruning and rebuilding."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.environments import (
    Environment,
    EnvironmentRequest,
    list_environments,
    prune_environments,
    rebuild_environment,
    show_environment,
)
from atoll.environments.cache import mark_used
from atoll.environments.upkeep import without_passwords
from atoll.errors import EnvironmentError

from .conftest import nothing_half_made

Open = Callable[..., Environment]

HOST = ".".join(map(str, sys.version_info[:3]))


def test_an_empty_cache(cache: Path) -> None:
    assert list_environments() == []
    assert prune_environments(everything=True).removed == ()
    assert not (cache / "environments").exists()


def test_list_and_show(open_for: Open, cache: Path) -> None:
    environment = open_for(python=HOST)
    (one,) = list_environments()
    assert one.key == environment.key
    assert one.path == str(cache / "environments" / one.key)
    assert one.python == HOST
    assert one.packages == {}
    assert one.size > 100
    assert one.built <= time.time()
    assert one.in_use
    assert one.requests == (f"mean: no packages, Python {HOST}",)
    assert show_environment(one.key[-5:]) == one
    with pytest.raises(EnvironmentError, match="there is no environment 'nothing'"):
        show_environment("nothing")
    del environment
    gc.collect()
    assert not show_environment(one.key).in_use


@pytest.mark.network
def test_one_environment_of_several_requests(open_for: Open) -> None:
    open_for(dependencies=["six==1.17.0"])
    open_for(dependencies=["six>=1.17.0,<1.17.1"])
    (one,) = list_environments()
    assert one.requests == ("mean: six==1.17.0", "mean: six>=1.17.0,<1.17.1")
    assert one.packages == {"six": "1.17.0"}
    assert "six==1.17.0" in one.lock


def test_prune_leaves_what_is_in_use(open_for: Open, cache: Path) -> None:
    environment = open_for(python=HOST)
    second = open_for(python=HOST)  # shares the mark
    done = prune_environments(everything=True)
    assert (done.removed, done.kept) == ((), (environment.key,))
    del environment
    gc.collect()
    assert prune_environments(everything=True).kept == (second.key,)
    key = second.key
    del second
    gc.collect()
    assert prune_environments(everything=True, dry_run=True).removed == (key,)
    assert len(list_environments()) == 1
    done = prune_environments(everything=True)
    assert done.removed == (key,)
    assert done.size > 100
    assert list_environments() == []
    assert os.listdir(cache / "requests") == []
    assert nothing_half_made(cache)
    assert open_for(python=HOST).key == key


def test_prune_leaves_what_another_process_uses(open_for: Open, start: Callable[..., subprocess.Popen[str]]) -> None:
    key = open_for(python=HOST).key
    user = start(
        "from atoll.environments import EnvironmentRequest, open_environment\n"
        f"environment = open_environment(EnvironmentRequest('packages', 'mean', python='{HOST}'))\n"
        "print('open', flush=True)\nsys.stdin.readline()\n"
    )
    assert user.stdout is not None
    assert user.stdout.readline() == "open\n"
    assert prune_environments(everything=True).kept == (key,)
    user.kill()
    user.wait()
    assert prune_environments(everything=True).removed == (key,)


def test_prune_by_age(open_for: Open, cache: Path) -> None:
    key = open_for(python=HOST).key
    gc.collect()
    assert prune_environments(unused_days=30).removed == ()
    used = cache / "environments" / key / "used"
    past = time.time() - 31 * 86400
    os.utime(used, (past, past))
    assert prune_environments(unused_days=32).removed == ()
    assert prune_environments(unused_days=30).removed == (key,)


def test_opening_counts_as_use(open_for: Open, cache: Path) -> None:
    key = open_for(python=HOST).key
    used = cache / "environments" / key / "used"
    os.utime(used, (1, 1))
    open_for(python=HOST)
    assert used.stat().st_mtime > 1


def test_a_mark_on_what_was_just_removed_counts_for_nothing(open_for: Open, cache: Path) -> None:
    environment = open_for(python=HOST)
    folder = cache / "environments" / environment.key
    use = mark_used(str(folder))
    assert use is environment.use
    os.rename(folder, cache / "elsewhere")
    assert mark_used(str(folder)) is None


@pytest.mark.network
def test_rebuild_from_the_same_lock(open_for: Open) -> None:
    environment = open_for(dependencies=["six"])
    with pytest.raises(EnvironmentError, match="is in use; close the services"):
        rebuild_environment(environment.key)
    key = environment.key
    del environment
    gc.collect()
    before = show_environment(key).built
    (rebuilt,) = rebuild_environment(key)
    assert rebuilt.key == key
    assert show_environment(key).built > before


@pytest.mark.network
def test_rebuild_from_a_new_lock(open_for: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that appeared since is taken, and the old environment stays for those who run in it."""
    constraint = tmp_path / "uv.toml"
    constraint.write_text('constraint-dependencies = ["six<1.17"]\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(constraint))
    old = open_for(dependencies=["six"])
    assert old.pinned == {"six": "1.16.0"}
    constraint.write_text("")
    assert open_for(dependencies=["six"]).key == old.key
    (new,) = rebuild_environment(old.key, resolve_anew=True)
    assert new.key != old.key
    assert new.pinned["six"] != "1.16.0"
    assert open_for(dependencies=["six"]).key == new.key
    assert {one.key for one in list_environments()} == {old.key, new.key}


def test_passwords_are_not_shown(request_for: Callable[..., EnvironmentRequest]) -> None:
    assert without_passwords("--index-url https://me:secret@index.invalid/simple") == (
        "--index-url https://***@index.invalid/simple"
    )
    request = request_for(dependencies=["six"], indexes=["https://me:secret@index.invalid/"])
    assert "secret" not in str(request)


def test_records_are_for_their_owner_only(open_for: Open, cache: Path) -> None:
    open_for(python=HOST)
    for record in cache.glob("requests/*.json"):
        assert record.stat().st_mode & 0o077 == 0
    assert cache.stat().st_mode & 0o077 == 0
