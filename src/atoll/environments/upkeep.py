# SPDX-License-Identifier: Apache-2.0
"""Looking after the cache: what is there, what it was for, and removing or renewing it.

What always holds here: an environment that a process uses is never removed nor replaced; what is removed leaves sight
in one step. What does not belong here: printing (``atoll.cli``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import EnvironmentError
from .build import sweep
from .cache import (
    MARKER,
    Lock,
    build_folders,
    cache_folder,
    environment_folder,
    read_record,
    remove,
    retire,
    unused,
    usable_cache,
)
from .environment import Environment
from .opening import prepare
from .request import EnvironmentRequest


@dataclass(frozen=True)
class EnvironmentInfo:
    """A published environment.

    Attributes:
        key: its name.
        path: its folder.
        python: version of its interpreter.
        packages: distribution name -> version.
        size: bytes of its files. Files that uv hard-links from its own cache are counted, though they take no room
            of their own.
        built: when, in seconds since the epoch.
        last_used: when it was last opened, in seconds since the epoch.
        in_use: whether a process uses it now.
        requests: what it is for, one line each.
        lock: the text it was installed from.
    """

    key: str
    path: str
    python: str
    packages: dict[str, str]
    size: int
    built: float
    last_used: float
    in_use: bool
    requests: tuple[str, ...]
    lock: str


@dataclass(frozen=True)
class Pruned:
    """What ``prune_environments`` did, or with ``dry_run`` would do.

    Attributes:
        removed: environments that are gone.
        kept: environments that would have gone, but are in use.
        leftovers: how many half-made folders of killed builders are gone.
        size: bytes of the removed environments.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    leftovers: int
    size: int


def list_environments() -> list[EnvironmentInfo]:
    """Every published environment, the last used first.

    Raises:
        BuildError: the cache cannot be read.
    """
    folder = os.path.join(cache_folder(), "environments")
    with usable_cache():
        try:
            keys = os.listdir(folder)
        except FileNotFoundError:
            return []
        users = _requests_by_key()
        found = [_info(key, [request for _, request in users.get(key, [])]) for key in keys]
    return sorted((one for one in found if one is not None), key=lambda one: one.last_used, reverse=True)


def show_environment(key: str) -> EnvironmentInfo:
    """One environment, by its key or an unambiguous part of it.

    Raises:
        EnvironmentError: there is none, or several.
    """
    found = [one for one in list_environments() if key in one.key]
    exact = [one for one in found if one.key == key]
    if exact or len(found) == 1:
        return (exact or found)[0]
    if not found:
        raise EnvironmentError(f"there is no environment {key!r} in {cache_folder()}; see `atoll env list`")
    raise EnvironmentError(f"{key!r} may be any of {', '.join(one.key for one in found)}; write more of it")


def prune_environments(
    *, unused_days: float | None = None, keys: Sequence[str] = (), everything: bool = False, dry_run: bool = False
) -> Pruned:
    """Remove environments that nobody uses now, and what killed builders left.

    Args:
        unused_days: those last opened longer ago than so many days.
        keys: those of these keys.
        everything: all of them.
        dry_run: only say which.

    Raises:
        BuildError: the cache cannot be changed.
    """
    with usable_cache():
        return _prune(unused_days, keys, everything, dry_run)


def _prune(unused_days: float | None, keys: Sequence[str], everything: bool, dry_run: bool) -> Pruned:
    leftovers = len(_leftovers()) if dry_run else sweep()
    removed, kept, size = [], [], 0
    oldest = time.time() - unused_days * 86400 if unused_days is not None else float("-inf")
    for info in list_environments():
        if not (everything or info.key in keys or info.last_used < oldest):
            continue
        if info.in_use or not (dry_run or _remove(info)):
            kept.append(info.key)
            continue
        removed.append(info.key)
        size += info.size
    if not dry_run:
        leftovers += _remove_damaged()
    return Pruned(tuple(removed), tuple(kept), leftovers, size)


def rebuild_environment(
    key: str, *, resolve_anew: bool = False, offline: bool | None = None, progress: bool | None = None
) -> list[Environment]:
    """Build an environment again: from the same lock, or, for each request that uses it, from a new one.

    A new lock that differs makes a new environment; the old one stays until it is pruned, since it may be in use.

    Args:
        key: its key, or an unambiguous part of it.
        resolve_anew: ask the resolver again.
        offline, progress: as for ``open_environment``.

    Returns:
        The environments that the requests now have.

    Raises:
        EnvironmentError: there is no such environment, it is in use, or it cannot be built.
    """
    info = show_environment(key)
    users = _requests_by_key().get(info.key, [])
    if resolve_anew:
        if not users:
            raise EnvironmentError(f"no request is known for environment {info.key}, so there is nothing to resolve")
        requests = [request for _, request in users]
        return [prepare(one, one.digest(), offline=offline, progress=progress, resolve_anew=True) for one in requests]
    if info.in_use:
        raise EnvironmentError(f"environment {info.key} is in use; close the services that run in it first")
    for path, request in users:
        # A request whose files changed since is another request by now, and would be built elsewhere.
        if os.path.basename(path) == request.digest() + ".json":
            return [prepare(request, request.digest(), offline=offline, progress=progress, reinstall=True)]
    raise EnvironmentError(
        f"the files that environment {info.key} was requested with have changed since; nothing needs it any more "
        "(it is removed by `atoll env prune`)"
    )


def _info(key: str, requests: list[EnvironmentRequest]) -> EnvironmentInfo | None:
    folder = environment_folder(key)
    record = read_record(os.path.join(folder, MARKER))
    if record is None:
        return None
    try:
        with open(os.path.join(folder, "lock.txt"), encoding="utf-8") as file:
            lock = file.read()
        with unused(folder) as free:
            in_use = not free
        return EnvironmentInfo(
            key=key,
            path=folder,
            python=".".join(map(str, record["version"])),
            packages=dict(sorted(record["pinned"].items())),
            size=int(record["size"]),
            built=float(record["built"]),
            last_used=os.stat(os.path.join(folder, "used")).st_mtime,
            in_use=in_use,
            requests=tuple(sorted({f"{one.service}: {without_passwords(str(one))}" for one in requests})),
            lock=without_passwords(lock),
        )
    except (OSError, KeyError, TypeError, ValueError):
        return None  # damaged: the next opening builds it again, and prune removes it


def without_passwords(text: str) -> str:
    """A text with the user and password of every URL in it masked."""
    import re

    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


def _requests_by_key() -> dict[str, list[tuple[str, EnvironmentRequest]]]:
    """The record files of requests, with the requests, by the key of the environment they have."""
    folder = os.path.join(cache_folder(), "requests")
    found: dict[str, list[tuple[str, EnvironmentRequest]]] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return found
    for name in names:
        path = os.path.join(folder, name)
        record: dict[str, Any] = read_record(path) or {} if name.endswith(".json") else {}
        try:
            request = EnvironmentRequest.from_record(record["request"])
            found.setdefault(str(record["key"]), []).append((path, request))
        except (KeyError, TypeError):
            continue
    return found


def _remove(info: EnvironmentInfo) -> bool:
    """Remove an environment and the requests that led to it; False if somebody uses or builds it after all."""
    lock = Lock(f"environment-{info.key}")
    if not lock.acquire(wait=False):
        return False
    try:
        with unused(info.path) as free:
            if not free:
                return False
            gone = retire(info.path, info.key)
        remove(gone)
        for path, _ in _requests_by_key().get(info.key, []):
            remove(path)
        return True
    finally:
        lock.release()


def _remove_damaged() -> int:
    """Remove published folders that lost their marker: nothing can open them. How many."""
    folder = os.path.join(cache_folder(), "environments")
    count = 0
    for key in os.listdir(folder) if os.path.isdir(folder) else []:
        if _info(key, []) is None:
            lock = Lock(f"environment-{key}")
            if lock.acquire(wait=False):
                try:
                    if _info(key, []) is None:
                        remove(retire(environment_folder(key), key))
                        count += 1
                finally:
                    lock.release()
    return count


def _leftovers() -> list[str]:
    """Half-made folders that no builder is at work on."""
    found = []
    for path in build_folders():
        lock = Lock(f"environment-{os.path.basename(path).rsplit('-', 2)[0]}")
        if lock.acquire(wait=False):
            lock.release()
            found.append(path)
    return found
