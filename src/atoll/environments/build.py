# SPDX-License-Identifier: Apache-2.0
"""From a lock to a published environment.

What always holds here: the caller holds the key's lock; an environment appears by one rename, complete, or not at
all. What does not belong here: resolving, and deciding whether to build.

Where it is built and how it can move: in a temporary folder beside the place where it will be published, as a
*relocatable* virtual environment (``uv venv --relocatable``). Its interpreter is a link to an absolute path outside,
``pyvenv.cfg`` names that outside path too, and console scripts find the interpreter relative to themselves; compiled
bytecode gets its file names from where it is imported. So nothing inside knows where it lies, and a rename publishes
it. The other way, building at the final path with the marker written last, would leave a half-made environment in
sight after every kill.
"""

from __future__ import annotations

import os
import time
from typing import Any

from ..errors import BuildError, EnvironmentError, InterpreterNotFound
from .cache import (
    MARKER,
    Lock,
    build_folders,
    environment_folder,
    make_folder,
    new_build_folder,
    remove,
    retire,
    write_record,
)
from .installed import scan
from .interpreters import Interpreter, ask
from .lock import index_arguments, uv_error
from .progress import Progress
from .request import EnvironmentRequest
from .uv_command import UvResult, run_uv


def build(
    request: EnvironmentRequest,
    key: str,
    lock: str,
    interpreter: Interpreter,
    *,
    offline: bool,
    progress: Progress,
    held: Lock,
) -> dict[str, Any]:
    """Build and publish the environment of a key. What was there before under that key is replaced.

    Args:
        request: whose indexes are used, and who is named in messages.
        key: name in the cache.
        lock: what to install, as ``lock.resolve`` gave it.
        interpreter: what to build it with.
        offline: forbid the network.
        progress: told of each stage.
        held: the key's lock, which the caller holds; children inherit it, so that an installer which outlives a
            killed builder is waited for before anybody sweeps its folder.

    Returns:
        The record that marks it as complete.

    Raises:
        BuildError: something could not be installed; the message ends with the installer's words.
        OfflineError: it would have needed the network.
    """
    sweep(key)
    folder = new_build_folder(key)
    try:
        venv = os.path.join(folder, "venv")
        python = os.path.join(venv, "bin", "python")
        installer = Installer(request, offline, progress, held)
        progress.stage("making the environment")
        # At "/" there is no project whose settings uv could take for ours; an interpreter is never fetched here.
        installer.run("cannot be made", ["venv", "--relocatable", "--no-project", "--python", interpreter.path, venv])
        _remove_startup_hook(venv)
        with open(os.path.join(folder, "lock.txt"), "w", encoding="utf-8") as file:
            file.write(lock)
        if request.kind == "project":
            installer.sync_project(venv, python)
        elif lock:
            installer.install_lock(_lock_for_installer(folder, request), python)
        progress.stage("checking")
        record = _record(key, folder, python, request, interpreter)
        with open(os.path.join(folder, "used"), "wb"):
            pass
        write_record(os.path.join(folder, MARKER), record)
        target = environment_folder(key)
        make_folder(os.path.dirname(target))
        before = retire(target, key) if os.path.lexists(target) else None
        os.rename(folder, target)
        if before is not None:
            remove(before)
    finally:
        remove(folder)  # gone already where it was published
    return record


def sweep(key: str | None = None) -> int:
    """Remove what killed builders left, and say how many folders that were.

    Of ``key``, whose lock the caller holds, and of every other key whose lock is free.
    """
    count = 0
    for path in build_folders():
        owner = os.path.basename(path).rsplit("-", 2)[0]
        if owner == key:
            remove(path)
            count += 1
            continue
        lock = Lock(f"environment-{owner}")
        if lock.acquire(wait=False):
            try:
                remove(path)
                count += 1
            finally:
                lock.release()
    return count


class Installer:
    """uv at work for one request. Its children inherit the lock ``held``."""

    def __init__(self, request: EnvironmentRequest, offline: bool, progress: Progress, held: Lock) -> None:
        self._request = request
        self._offline = offline
        self._progress = progress
        self._held = held

    def run(
        self, what: str, arguments: list[str], *, cwd: str = "/", variables: dict[str, str] | None = None
    ) -> UvResult:
        result = run_uv(
            [*arguments, "--no-python-downloads"],
            offline=self._offline,
            cwd=cwd,
            variables=variables,
            inherit=(self._held.fd,),
            on_line=self._progress.line,
        )
        if result.status != 0:
            message = f"service {self._request.service!r}: its environment {what}"
            raise uv_error(BuildError, message, "the installer", result)
        return result

    def install_lock(self, lock: str, python: str) -> None:
        """Exactly what the lock says. Bytecode is compiled now, because a first call should not wait for it."""
        self._progress.stage("installing")
        arguments = ["pip", "sync", lock, "--python", python, "--compile-bytecode", "--allow-empty-requirements"]
        # Relative paths in a lock that a user wrote are meant from where it lies.
        cwd = os.path.dirname(self._request.lock) if self._request.lock is not None else "/"
        self.run("cannot be installed", [*arguments, *index_arguments(self._request)], cwd=cwd)

    def check_lock(self, python: str) -> None:
        """Whether what the lock installed is all that the dependencies ask for."""
        self._progress.stage("checking")
        # With nowhere to get packages from, uv can only say that what is there is enough, or what is missing.
        check = ["pip", "install", "--python", python, "--no-index", "--no-deps", "--dry-run"]
        what = f"lacks what it needs: lock {self._request.lock} does not hold its dependencies"
        result = self.run(what, [*check, *self._request.dependencies])
        if "Would install" in result.stderr:
            raise uv_error(BuildError, f"service {self._request.service!r}: its environment {what}", "uv", result)

    def sync_project(self, venv: str, python: str) -> None:
        """What ``uv sync --frozen`` installs, without development groups and editable links to the project's files."""
        self._progress.stage("installing")
        assert self._request.path is not None
        arguments = ["sync", "--frozen", "--no-dev", "--no-editable", "--compile-bytecode", "--python", python]
        self.run(
            "cannot be installed",
            [*arguments, *index_arguments(self._request)],
            cwd=self._request.path,
            variables={"UV_PROJECT_ENVIRONMENT": venv},
        )


def _lock_for_installer(folder: str, request: EnvironmentRequest) -> str:
    """The lock under a name that tells uv its format."""
    path = os.path.join(folder, "lock.txt")
    if request.lock is not None and os.path.basename(request.lock).startswith("pylock."):
        return request.lock
    return path


def _remove_startup_hook(venv: str) -> None:
    """Take out what uv puts into every venv to keep distutils in old pips from installing elsewhere.

    Nobody installs into a published environment, and the hook costs each worker's start an import and every later
    import one more finder.
    """
    for folder, _, files in os.walk(os.path.join(venv, "lib")):
        for name in ("_virtualenv.pth", "_virtualenv.py"):
            if name in files:
                remove(os.path.join(folder, name))


def _record(
    key: str, folder: str, python: str, request: EnvironmentRequest, interpreter: Interpreter
) -> dict[str, Any]:
    """Everything an ``Environment`` is made of. Paths inside are relative: the folder is about to move."""
    try:
        answer = ask(python)
    except InterpreterNotFound as error:
        raise BuildError(
            f"service {request.service!r}: the interpreter of its new environment fails: {error}"
        ) from None
    if answer.version != interpreter.version:
        raise BuildError(
            f"service {request.service!r}: its environment was made with Python {answer.version_text} instead of "
            f"{interpreter.version_text} ({interpreter.path})"
        )
    folders = answer.package_folders
    versions, modules = scan(folders)
    size = 0
    for place, _, files in os.walk(folder):
        size += sum(os.lstat(os.path.join(place, name)).st_size for name in files)
    return {
        "key": key,
        "python": os.path.relpath(python, folder),
        "version": list(answer.version),
        "pinned": versions,
        "modules": modules,
        "contents": [sorted(set(os.listdir(one)) - {"__pycache__"}) if os.path.isdir(one) else [] for one in folders],
        "site_packages": [_relative(one, folder) for one in folders],
        "interpreter": {"path": interpreter.path, "stamp": answer.stamp, "identity": interpreter.identity},
        "request": request.as_record(),
        "size": size,
        "built": time.time(),
    }


def _relative(path: str, folder: str) -> str:
    return os.path.relpath(path, folder) if path.startswith(folder + os.sep) else path


def refuse_if_broken(record: dict[str, Any], folder: str) -> Interpreter:
    """Ask the interpreter of a published environment whether it still works.

    Raises:
        EnvironmentError: it does not.
    """
    python = os.path.join(folder, record["python"])
    answer = ask(python)
    if list(answer.version) != record["version"]:
        raise EnvironmentError(f"{python} is now Python {answer.version_text}")
    return answer
