# SPDX-License-Identifier: Apache-2.0
"""Modules of this process that a pack may import: what of them it gets.

What always holds here: a pack gets the functions and classes that a module itself defines, to be called here, and its
plain data; nothing that the module merely imported. What does not belong here: the pack's end of it
(``atoll_worker.host_modules``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from atoll_worker.host_modules import key_of
from atoll_worker.lent import Lent

from ..errors import ManifestError

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes))


class OfferedModule:
    """A module as a pack sees it.

    Args:
        module: the module, or any object whose functions and data are offered.
    """

    def __init__(self, module: object) -> None:
        self._module = module
        self._lent = Lent(module)

    # No public names of its own: those are the module's.

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if _is_data(value):
            return value
        if not _is_own(value, self._module):
            raise AttributeError(f"{name!r} is not what this module offers")
        return self._lent._calling(value)


def _public(module: object) -> dict[str, Any]:
    return {name: getattr(module, name, None) for name in dir(module) if not name.startswith("_")}


def _is_own(value: object, module: object) -> bool:
    of = getattr(module, "__name__", None) or type(module).__module__
    return callable(value) and getattr(value, "__module__", None) == of


def _is_data(value: object) -> bool:
    if type(value) in _PLAIN:
        return True
    if type(value) in (list, tuple, set, frozenset):
        return all(map(_is_data, value))  # type: ignore[call-overload]
    return type(value) is dict and all(map(_is_data, value)) and all(map(_is_data, value.values()))


def check_modules(modules: object) -> Mapping[str, object]:
    """The modules as given.

    Raises:
        ManifestError: they are no mapping of names to modules.
    """
    if not isinstance(modules, Mapping):
        raise ManifestError(f"option modules: found {modules!r:.100}, expected a mapping of names to modules")
    for name in modules:
        parts = name.split(".") if isinstance(name, str) else [""]
        if not all(part.isidentifier() and not part.startswith("_") for part in parts):
            raise ManifestError(f"option modules: found the name {name!r}, expected one such as 'folder_paths'")
        if parts[0] in sys.stdlib_module_names or parts[0] in ("atoll", "atoll_worker", "comfy_api"):
            raise ManifestError(f"option modules: found the name {name!r}, which a pack has its own of")
    return modules


def objects_of(modules: Mapping[str, object]) -> dict[str, object]:
    """What the pool is given to serve them, by name."""
    return {key_of(name): OfferedModule(module) for name, module in modules.items()}


def told_of(modules: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """What a worker is told of them when it is started."""
    told: dict[str, dict[str, Any]] = {}
    for name, module in modules.items():
        public = _public(module)
        told[name] = {
            "functions": [one for one, value in public.items() if _is_own(value, module)],
            "data": {one: value for one, value in public.items() if _is_data(value)},
        }
    return told
