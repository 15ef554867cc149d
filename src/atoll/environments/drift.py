# SPDX-License-Identifier: Apache-2.0
"""Were the pinned packages really loaded from the environment, and will they be?

What always holds here: it judges what a worker reported and touches nothing but the folders it is told of. What does
not belong here: asking the worker.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping, Sequence

from ..errors import EnvironmentDrift
from .environment import Environment

_STDLIB = re.compile(r"(python\d+\.\d+t?|python\d+t?\.zip|lib-dynload|plat-\w+)$")


def check_drift(
    environment: Environment, sys_path: Sequence[str], loaded: Mapping[str, str], service_folders: Sequence[str]
) -> None:
    """Refuse a worker that would run other packages than those its environment pins.

    A host environment pins nothing, so there is nothing to check. An existing environment was not locked by atoll, but
    what is installed in it must come from it all the same.

    Args:
        environment: what the worker was started in.
        sys_path: the worker's ``sys.path``.
        loaded: top-level import name -> file, for those modules of ``environment.modules`` that the worker has loaded.
        service_folders: folders of ``sys_path`` that hold the service's own code.

    Raises:
        EnvironmentDrift: a package was, or would be, loaded from outside the environment.
    """
    if environment.is_host:
        return
    inside = tuple(_real(folder) for folder in (*environment.site_packages, environment.prefix))
    own = {_real(folder) for folder in service_folders}
    for module, file in loaded.items():
        distribution = environment.modules.get(module)
        # A namespace package has no file of its own: its parts are spread over folders by design.
        if distribution is None or not file or _within(_real(file), inside):
            continue
        raise EnvironmentDrift(_message(environment, module, distribution, file, own, "was loaded"))
    for entry in sys_path:
        folder = _real(entry or os.curdir)
        if folder in inside:
            break  # what comes after the environment's own folder cannot hide anything in it
        if _STDLIB.search(folder) or _within(folder, inside):
            continue
        for module, file in _modules_in(folder, environment.modules):
            distribution = environment.modules[module]
            raise EnvironmentDrift(_message(environment, module, distribution, file, own, "would be loaded"))


def _message(environment: Environment, module: str, distribution: str, file: str, own: set[str], verb: str) -> str:
    version = environment.pinned.get(distribution)
    package = f"{distribution} {version}" if version else distribution
    expected = ", ".join(environment.site_packages)
    folder = _real(os.path.dirname(file))
    if folder in own or _real(os.path.dirname(folder)) in own:
        advice = f"Rename {os.path.basename(file)}: beside the service it hides the package of the same name."
    else:
        advice = (
            "Take that folder out of the worker's import path (a .pth file, PYTHONPATH in env_vars, or code that "
            "changes sys.path)."
        )
    return (
        f"module {module!r} belongs to {package} of environment {environment.key}, but {verb} from {file}; "
        f"expected it in {expected}. {advice}"
    )


def _modules_in(folder: str, wanted: Container[str]) -> list[tuple[str, str]]:
    """Those names that a folder of ``sys.path`` offers, with their files. Not namespace packages: they never win."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, dot, suffix = entry.name.partition(".")
                if stem not in wanted:
                    continue
                if dot:
                    if suffix in ("py", "pyc") or suffix.endswith("so"):
                        found.append((stem, entry.path))
                elif os.path.isfile(os.path.join(entry.path, "__init__.py")):
                    found.append((stem, os.path.join(entry.path, "__init__.py")))
    except OSError:
        return []  # gone, not readable, or a zip file: the import system passes over it the same way
    return sorted(found)


def _real(path: str) -> str:
    return os.path.realpath(path)


def _within(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)
