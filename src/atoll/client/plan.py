# SPDX-License-Identifier: Apache-2.0
"""A service's spec -> what its workers are started with."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ..environments import Environment, environment_request, open_environment
from ..errors import ManifestError
from ..manifest import ServiceSpec
from ..pool.worker import WorkerPlan
from ..processes import Limits
from .source import FunctionSource


def plan_service(spec: ServiceSpec) -> WorkerPlan:
    """The plan for a service in a file or module. Opens its environment, which may build it.

    Raises:
        ManifestError: there is no such file.
        EnvironmentError: there is no such environment.
    """
    place, class_name = split_entry(spec.entry)
    environment = open_environment(environment_request(spec))
    entry: dict[str, Any]
    sys_path = _host_path() if environment.is_host else []
    folders: list[str] = []
    if os.path.isabs(place):
        if not os.path.isfile(place):
            raise ManifestError(f"service {spec.name!r}: there is no file {place}")
        entry = {"kind": "file", "path": place, "class": class_name}
        folders.append(os.path.dirname(place))
    else:
        entry = {"kind": "module", "module": place, "class": class_name}
        folders += _module_folders(place, spec, environment)
        sys_path += [folder for folder in folders if folder not in sys_path]
    return _plan(spec, environment, entry, sys_path, folders)


def plan_function(spec: ServiceSpec, source: FunctionSource, idempotent: bool) -> WorkerPlan:
    """The plan for a shipped function. Opens its environment, which may build it.

    Raises:
        EnvironmentError: there is no such environment.
    """
    environment = open_environment(environment_request(spec))
    entry = {
        "kind": "source",
        "name": source.name,
        "source": source.source,
        "filename": source.filename,
        "line": source.line,
        "module": source.module,
        "idempotent": idempotent,
    }
    return _plan(spec, environment, entry, _host_path() if environment.is_host else [], [])


def plan_extension(spec: ServiceSpec) -> WorkerPlan:
    """The plan for an extension, whose entry is a package's folder or a file. Opens its environment, perhaps builds it.

    Raises:
        EnvironmentError: there is no such environment.
    """
    environment = open_environment(environment_request(spec))
    folder = spec.entry if os.path.isdir(spec.entry) else os.path.dirname(spec.entry)
    entry = {"kind": "extension", "path": spec.entry}
    return _plan(spec, environment, entry, _host_path() if environment.is_host else [], [folder])


def _plan(
    spec: ServiceSpec, environment: Environment, entry: dict[str, Any], sys_path: list[str], folders: list[str]
) -> WorkerPlan:
    return WorkerPlan(
        service=spec.name,
        entry=entry,
        environment=environment,
        sys_path=tuple(sys_path),
        service_folders=tuple(folders),
        env_vars=_env_vars(spec),
        start_timeout=spec.start_timeout,
        limits=Limits(memory=spec.memory, cpus=spec.cpus, nice=spec.nice, open_files=spec.open_files) or None,
        sandbox=spec.sandbox,
        preload=spec.preload,
    )


def _env_vars(spec: ServiceSpec) -> dict[str, str]:
    if spec.memory_budget is None:
        return dict(spec.env_vars)
    return {"ATOLL_MEMORY_BUDGET": str(spec.memory_budget), **spec.env_vars}


def split_entry(entry: str) -> tuple[str, str | None]:
    """``place[:Class]`` -> place, class name."""
    place, colon, name = entry.rpartition(":")
    if colon and name.isidentifier() and place:
        return place, name
    return entry, None


def _host_path() -> list[str]:
    """This process's import path: a worker without an environment of its own imports what the host can."""
    return [os.path.abspath(entry) for entry in sys.path if not entry.endswith(".zip")]


def _module_folders(module: str, spec: ServiceSpec, environment: Environment) -> list[str]:
    """The folder to import a module from, unless the worker's environment holds it.

    Found by looking, not by importing: importing a package runs its code, here, with the wrong packages.
    """
    top = module.partition(".")[0]
    candidates = [spec.folder] if spec.folder else []
    candidates += [os.path.abspath(entry) for entry in sys.path]
    for candidate in candidates:
        folder = Path(candidate)
        if (folder / f"{top}.py").is_file() or (folder / top).is_dir():
            # The host's site-packages never reach a worker with an environment of its own.
            if not environment.is_host and folder.name in ("site-packages", "dist-packages"):
                continue
            return [str(folder)]
    return []
