# SPDX-License-Identifier: Apache-2.0
"""From requirements to a lock: every package at one version, for one interpreter on one platform.

What always holds here: the resolver's own words reach the user unchanged; a lock names local packages by absolute
path. What does not belong here: installing.
"""

from __future__ import annotations

import os

from ..errors import BuildError, EnvironmentError, OfflineError, ResolutionError
from .interpreters import Interpreter, find_interpreter
from .progress import Progress
from .request import EnvironmentRequest
from .uv_command import UvResult, run_uv, wants_network


def choose_interpreter(request: EnvironmentRequest, offline: bool) -> Interpreter:
    """The interpreter to resolve and build for. A project's own ``requires-python`` counts where nothing is given.

    Raises:
        InterpreterNotFound, OfflineError: see ``find_interpreter``.
    """
    python = request.python
    if python is None and request.kind == "project":
        import tomllib

        try:
            project = tomllib.loads(request.project_files()[0]).get("project", {})
            python = project.get("requires-python") if isinstance(project, dict) else None
        except tomllib.TOMLDecodeError:
            python = None  # uv will say what is wrong with the file
    try:
        return find_interpreter(python, offline=offline, service=request.service)
    except ValueError:
        # PEP 440 has forms that no sensible requires-python uses; the host's own is then tried, and uv checks it.
        return find_interpreter(None)


def resolve(
    request: EnvironmentRequest, interpreter: Interpreter, *, offline: bool, progress: Progress, inherit: int
) -> str:
    """The lock's text; empty when nothing is to be installed.

    Raises:
        ResolutionError: the resolver refused; the message ends with its words.
        OfflineError: it would have needed the network.
    """
    if request.kind == "project":
        return request.project_files()[1]
    if request.lock is not None:
        with open(request.lock, encoding="utf-8") as file:
            return file.read()
    if not request.dependencies and request.path is None:
        return ""
    progress.stage("resolving")
    # uv takes relative paths in a requirements file from the folder it runs in, and so do we where there is one.
    folder = os.path.dirname(request.path) if request.path is not None else "/"
    arguments = ["pip", "compile", "--python", interpreter.path, "--no-header", "--no-annotate", "--generate-hashes"]
    if request.path is not None:
        # The file may name indexes, which the installer has to know of too.
        arguments += [request.path, "--emit-index-url", "--emit-find-links"]
    if request.dependencies:
        arguments.append("-")
    result = run_uv(
        [*arguments, *index_arguments(request)],
        offline=offline,
        cwd=folder,
        stdin="\n".join(request.dependencies) + "\n",
        inherit=(inherit,),
        on_line=progress.line,
    )
    if result.status != 0:
        what = f"service {request.service!r}: its packages cannot be resolved for Python {interpreter.version_text}"
        raise uv_error(ResolutionError, what, "the resolver", result)
    return "".join(_absolute(line, folder) for line in result.stdout.splitlines(keepends=True))


def index_arguments(request: EnvironmentRequest) -> list[str]:
    """Where to look for packages, as uv's options."""
    arguments = []
    for index in request.indexes:
        arguments += ["--index", index]
    for place in request.find_links:
        arguments += ["--find-links", place]
    return arguments


def uv_error(kind: type[EnvironmentError], what: str, who: str, result: UvResult) -> EnvironmentError:
    """The error for a uv command that failed, with its words as they came."""
    if result.status < 0:
        import signal

        try:
            name = signal.Signals(-result.status).name
        except ValueError:
            name = f"signal {-result.status}"  # a real-time one
        words = result.stderr.rstrip("\n")
        return BuildError(f"{what}: uv was killed by {name}" + (f"; {who} said before:\n{words}" if words else ""))
    words = result.stderr.rstrip("\n") or result.stdout.rstrip("\n") or f"exit status {result.status}, no words"
    if wants_network(result):
        return OfflineError(
            f"{what}: something is missing on this machine, and offline mode is on. Build it once with the network "
            f"(or give find_links, a folder with the distribution files), or unset ATOLL_OFFLINE. "
            f"What is missing, as {who} says:\n{words}"
        )
    return kind(f"{what}; {who} says:\n{words}")


def _absolute(line: str, folder: str) -> str:
    """A line of the lock, with a local package by its absolute path and never editable: the lock is for any folder."""
    text = line.removeprefix("-e ").removeprefix("--editable ")
    if text.startswith(("./", "../")):
        return os.path.normpath(os.path.join(folder, text.rstrip("\n"))) + "\n"
    return text
