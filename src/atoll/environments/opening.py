# SPDX-License-Identifier: Apache-2.0
"""Opening an environment: at once if it is ready, else after resolving and building it.

What always holds here: a ready environment is opened without a subprocess, without the network and without waiting
for a lock; it is taken only after a look at its interpreter, so one that a system upgrade broke is repaired instead.
What does not belong here: how resolving and building are done.

Order of locks, so that nobody waits in a circle: first the request's, then the environment's.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentError, InterpreterNotFound
from .cache import (
    MARKER,
    Lock,
    environment_folder,
    mark_used,
    read_record,
    request_file,
    usable_cache,
    write_record,
)
from .environment import Environment
from .request import EnvironmentRequest, file_stamp, sha256

if TYPE_CHECKING:
    from .interpreters import Interpreter
    from .progress import Progress


def open_environment(
    request: EnvironmentRequest, *, offline: bool | None = None, progress: bool | None = None
) -> Environment:
    """The environment for a request, built first if it is not ready.

    While the returned object (or a copy) lives, the environment is in use and is not pruned.

    Args:
        request: made by ``environment_request``.
        offline: fetch nothing; by default as the variable ``ATOLL_OFFLINE`` says.
        progress: show a live line on stderr; by default if it is a terminal and rich is installed.

    Raises:
        ManifestError: a file the request names cannot be read.
        InterpreterNotFound: no interpreter satisfies it.
        ResolutionError: its packages cannot be resolved; the message holds the resolver's own words.
        BuildError: they cannot be installed; the message holds the installer's own words.
        OfflineError: something would have to be fetched, and offline mode is on.
    """
    if request.kind == "host":
        return host_environment()
    if request.kind == "existing":
        from .existing import open_existing

        return open_existing(request)
    digest = request.digest()
    ready = _ready(digest)
    if ready is not None:
        return ready
    return prepare(request, digest, offline=offline, progress=progress)


def host_environment() -> Environment:
    """This process's own interpreter and packages.

    Raises:
        InterpreterNotFound: Python is embedded, and there is no executable to start a worker with.
    """
    if not sys.executable:
        raise InterpreterNotFound(
            "this process embeds Python and does not know an interpreter's path (sys.executable is empty); "
            "give one: python='/path/of/python'"
        )
    return Environment(
        key="host",
        python=sys.executable,
        prefix=sys.prefix,
        version=sys.version_info[:3],
        pinned={},
        modules={},
        site_packages=tuple(entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))),
        is_host=True,
    )


def _ready(digest: str) -> Environment | None:
    record = read_record(request_file(digest))
    if record is None or not isinstance(record.get("key"), str):
        return None
    return load(record["key"])


def load(key: str) -> Environment | None:
    """The published environment of a key, marked as used; None if there is none, or it is damaged."""
    folder = environment_folder(key)
    record = read_record(os.path.join(folder, MARKER))
    if record is None:
        return None
    try:
        python = os.path.join(folder, record["python"])
        site_packages = tuple(os.path.join(folder, one) for one in record["site_packages"])
        # One look tells whether the interpreter that the environment links to is still the file it was made with.
        if file_stamp(python) != record["interpreter"]["stamp"] or _missing(record, site_packages):
            return None
        use = mark_used(folder)
        if use is None:
            return None
        major, minor, micro = record["version"]
        return Environment(
            key=key,
            python=python,
            prefix=os.path.dirname(os.path.dirname(python)),
            version=(major, minor, micro),
            pinned=record["pinned"],
            modules=record["modules"],
            site_packages=site_packages,
            is_host=False,
            use=use,
        )
    except (KeyError, TypeError, ValueError):
        return None  # written by another version of atoll: built again


def _missing(record: dict[str, Any], site_packages: tuple[str, ...]) -> list[str]:
    """What was installed at the top of the package folders and is gone; one look at each folder, none at the files."""
    missing = []
    contents = record.get("contents") or [()] * len(site_packages)  # older records do not tell
    for folder, installed in zip(site_packages, contents, strict=True):
        try:
            missing += sorted(set(installed).difference(os.listdir(folder)))
        except OSError:
            missing.append(os.path.basename(folder))
    return missing


def prepare(
    request: EnvironmentRequest,
    digest: str,
    *,
    offline: bool | None = None,
    progress: bool | None = None,
    resolve_anew: bool = False,
    reinstall: bool = False,
) -> Environment:
    """Resolve and build as far as it is needed, then open.

    Args:
        request: what is asked for.
        digest: its digest.
        offline, progress, and errors: as for ``open_environment``.
        resolve_anew: ask the resolver again instead of taking the lock that is known for this request.
        reinstall: build again although the environment is ready.
    """
    from .interpreters import is_offline
    from .progress import build_progress

    offline = is_offline(offline)
    shown = build_progress(f"environment for service {request.service!r}", progress)
    with usable_cache(f"service {request.service!r}: "), shown:
        lock = Lock(f"request-{digest}")
        if not lock.acquire(wait=False):
            shown.stage("waiting for another builder")
            lock.acquire()
        try:
            ready = None if resolve_anew or reinstall else _ready(digest)
            if ready is None:
                ready = _prepare(request, digest, offline, shown, lock, resolve_anew, reinstall)
        finally:
            lock.release()
        shown.done(f"ready with {_count(ready)} for Python {'.'.join(map(str, ready.version))}")
    return ready


def _prepare(
    request: EnvironmentRequest,
    digest: str,
    offline: bool,
    shown: Progress,
    held: Lock,
    resolve_anew: bool,
    reinstall: bool,
) -> Environment:
    from .build import Installer, build
    from .lock import choose_interpreter, resolve

    shown.stage("looking for an interpreter")
    interpreter = choose_interpreter(request, offline)
    known = read_record(request_file(digest)) or {}
    text = known.get("lock")
    if resolve_anew or not isinstance(text, str) or known.get("interpreter") != interpreter.identity:
        text = resolve(request, interpreter, offline=offline, progress=shown, inherit=held.fd)
    key = environment_key(request, text, interpreter)
    lock = Lock(f"environment-{key}")
    if not lock.acquire(wait=False):
        shown.stage("waiting for another builder")
        lock.acquire()
    try:
        ready = None if reinstall else _revalidated(key)
        if ready is None:
            if not reinstall:
                _tell_damage(key)
            build(request, key, text, interpreter, offline=offline, progress=shown, held=lock)
            ready = load(key)
        if ready is None:
            raise EnvironmentError(
                f"service {request.service!r}: environment {key} was built, and was gone or changed at once; is "
                f"something else removing files from {environment_folder(key)}?"
            )
        if request.lock is not None and request.dependencies:
            Installer(request, offline, shown, lock).check_lock(ready.python)
        write_record(
            request_file(digest),
            {"key": key, "interpreter": interpreter.identity, "lock": text, "request": request.as_record()},
        )
    finally:
        lock.release()
    return ready


def _tell_damage(key: str) -> None:
    """Say in one log line that an environment which is there must be built again, and why."""
    folder = environment_folder(key)
    if not os.path.isdir(folder):
        return
    import logging

    why = "it was changed since it was built"
    record = read_record(os.path.join(folder, MARKER))
    try:
        missing = (
            _missing(record, tuple(os.path.join(folder, one) for one in record["site_packages"])) if record else []
        )
        if missing:
            why = f"{', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''} is missing from its packages"
    except (KeyError, TypeError, ValueError):
        pass
    logging.getLogger("atoll.environments").warning("environment %s is damaged (%s): installing it again", key, why)


def _revalidated(key: str) -> Environment | None:
    """The environment of a key, also where its interpreter's file was replaced by another build of the same version."""
    ready = load(key)
    if ready is not None:
        return ready
    folder = environment_folder(key)
    record = read_record(os.path.join(folder, MARKER))
    if record is None:
        return None
    from .build import refuse_if_broken

    try:
        record["interpreter"]["stamp"] = refuse_if_broken(record, folder).stamp
    except (EnvironmentError, KeyError, TypeError):
        return None
    write_record(os.path.join(folder, MARKER), record)
    return load(key)


def environment_key(request: EnvironmentRequest, lock: str, interpreter: Interpreter) -> str:
    """Name of the environment that a lock makes: the hash of lock, interpreter and platform, and of what is local."""
    parts: list[Any] = [request.kind == "project", lock, interpreter.identity, request.local_packages()]
    if request.kind == "project":
        parts.append(request.project_files()[0])
    digest = sha256(repr(parts).encode("utf-8", "surrogateescape"))[:16]
    return f"{interpreter.version_text}-{digest}"


def _count(environment: Environment) -> str:
    count = len(environment.pinned)
    return f"{count} package{'' if count == 1 else 's'}"
