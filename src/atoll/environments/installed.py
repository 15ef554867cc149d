# SPDX-License-Identifier: Apache-2.0
"""Which distributions lie in a folder, and which import names each of them owns.

What always holds here: files are read, nothing is imported; a distribution with broken metadata is passed over. What
does not belong here: how they were installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

# Top-level names that distributions ship by accident. A service's own folder called "tests" is no drift.
_INCIDENTAL = {
    "benchmark", "benchmarks", "build", "conftest", "dist", "doc", "docs", "example", "examples", "scripts", "setup",
    "src", "test", "tests", "tools",
}  # fmt: skip
_CODE = (".py", ".so", ".pyd", ".pyc")


def normalise(name: str) -> str:
    """A distribution's name in the form in which all its spellings are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def scan(folders: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What is installed in folders of an import path: (normalised name -> version, import name -> normalised name)."""
    versions: dict[str, str] = {}
    modules: dict[str, str] = {}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            if not name.endswith((".dist-info", ".egg-info")):
                continue
            found = _metadata(os.path.join(folder, name))
            if found is None or found[0] in versions:
                continue  # the import path's first wins
            distribution, version = found
            versions[distribution] = version
            for module in _top_level(os.path.join(folder, name)):
                if module not in _INCIDENTAL or normalise(module) == distribution:
                    modules.setdefault(module, distribution)
    return versions, modules


def _metadata(info: str) -> tuple[str, str] | None:
    """Name and version, from the head of whichever file this kind of metadata keeps them in."""
    for path in (os.path.join(info, "METADATA"), os.path.join(info, "PKG-INFO"), info):
        fields: dict[str, str] = {}
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    key, colon, value = line.partition(":")
                    if not line.strip() or not colon:
                        break
                    fields.setdefault(key.lower(), value.strip())
        except OSError:
            continue
        if "name" in fields and "version" in fields:
            return normalise(fields["name"]), fields["version"]
    return None


def _top_level(info: str) -> list[str]:
    """Import names, from the list of installed files, else from the one that setuptools writes."""
    names: set[str] = set()
    try:
        with open(os.path.join(info, "RECORD"), encoding="utf-8", errors="replace") as file:
            for line in file:
                path = line.rsplit(",", 2)[0].strip('"')
                if not path.endswith(_CODE) or path.startswith(("..", "/", "__pycache__/")):
                    continue
                first, slash, _ = path.partition("/")
                names.add(first if slash else first.partition(".")[0])
    except OSError:
        try:
            with open(os.path.join(info, "top_level.txt"), encoding="utf-8", errors="replace") as file:
                names.update(line.strip() for line in file)
        except OSError:
            pass
    return sorted(name for name in names if name.isidentifier())
