# SPDX-License-Identifier: Apache-2.0
"""Using an interpreter or virtual environment that somebody else made, as it is.

What always holds here: nothing in it is changed, and nothing is claimed of its versions; it is asked once. What does
not belong here: environments that atoll builds.
"""

from __future__ import annotations

import os

from ..errors import InterpreterNotFound, ManifestError
from ..python_versions import parse_python
from .cache import cache_folder, read_record, write_record
from .environment import Environment
from .installed import scan
from .interpreters import OLDEST, probe
from .request import EnvironmentRequest, file_stamp, sha256


def open_existing(request: EnvironmentRequest) -> Environment:
    """The environment around an interpreter.

    Raises:
        InterpreterNotFound: it does not run, or is too old for atoll's workers.
        ManifestError: it is not the version that ``python`` asks for.
    """
    assert request.path is not None
    interpreter = probe(request.path)
    if interpreter.version[:2] < OLDEST:
        raise InterpreterNotFound(
            f"service {request.service!r}: environment {request.path} is Python {interpreter.version_text}; atoll's "
            f"workers need Python {OLDEST[0]}.{OLDEST[1]} or newer"
        )
    if request.python is not None:
        wanted = parse_python(request.python)
        if wanted.path is not None or not wanted.accepts(interpreter.version_key):
            raise ManifestError(
                f"service {request.service!r}: environment {request.path} is Python {interpreter.version_text}, but "
                f"python asks for {request.python!r}; give one of the two"
            )
    name, modules = _modules(request.path, interpreter.package_folders)
    return Environment(
        key=f"existing-{name}",
        python=interpreter.path,
        prefix=interpreter.prefix,
        version=interpreter.version,
        pinned={},
        modules=modules,
        site_packages=interpreter.package_folders,
        is_host=False,
    )


def _modules(path: str, folders: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """A name for the interpreter's path, and who owns which import name there; read again when a folder changed."""
    name = sha256(path.encode("utf-8", "surrogateescape"))[:16]
    stamps = [file_stamp(folder) for folder in folders]
    record_path = os.path.join(cache_folder(), "probes", name + "-modules.json")
    record = read_record(record_path)
    if record is not None and record.get("stamps") == stamps and isinstance(record.get("modules"), dict):
        return name, record["modules"]
    _, modules = scan(folders)
    try:
        write_record(record_path, {"path": path, "stamps": stamps, "modules": modules})
    except OSError:
        pass  # without a cache it is read again next time
    return name, modules
