# SPDX-License-Identifier: Apache-2.0
"""From a source and options to a spec: which file is meant, which layer goes before which.

What always holds here: nothing is imported or run to find out what a service is. What does not belong here: the
formats (``yaml_file``, ``script_header``) and the values (``spec``).
"""

from __future__ import annotations

import difflib
import os
from typing import Any

from ..errors import ManifestError
from .script_header import read_header
from .spec import FIELDS, NULLABLE, Place, ServiceSpec, check_value
from .yaml_file import read_yaml

MANIFEST_NAMES = ("service.yaml", "service.yml")

# What says which packages there are. A later layer that names a whole environment replaces them all: an existing
# environment given as an option would otherwise contradict the header of the file it is meant for.
_PACKAGES = ("dependencies", "lock", "indexes", "find_links")


# What the signatures of atoll.Service and @atoll.function have; the other fields are for manifests.
DOCUMENTED = (
    "name",
    "dependencies",
    "python",
    "environment",
    "env_vars",
    "start_timeout",
    "timeout",
    "workers",
    "concurrency",
    "max_queue",
    "restart",
    "breaker",
    "recycle",
    "health_interval",
    "preload",
    "memory",
    "memory_budget",
    "cpus",
    "nice",
    "open_files",
    "sandbox",
    "host",
)
# And what else one of them has. Neither these nor `host` are of a spec: they are not for manifests.
MORE_DOCUMENTED = {"atoll.function": ("idempotent",)}


def mistyped(key: str) -> str | None:
    """The known key that an unknown one of a manifest looks like; such a key has no effect, and nobody means that."""
    if key in FIELDS:
        return None  # its part that names other services
    near = difflib.get_close_matches(key.replace("-", "_"), FIELDS, 1, cutoff=0.75)
    return near[0] if near else None


def load_spec(source: str | os.PathLike[str], **options: Any) -> ServiceSpec:
    """See ``atoll.manifest.load_spec``."""
    spec = _load_spec(source, **options)
    for key in spec.extra:
        near = mistyped(key)
        if near is not None:
            import logging

            logging.getLogger("atoll.manifest").warning(
                "%s: key %s: not a key that atoll knows, so it has no effect; did you mean %s?",
                os.fspath(source),
                key,
                near,
            )
    return spec


def _load_spec(source: str | os.PathLike[str], **options: Any) -> ServiceSpec:
    given = _options(options, "atoll.Service")
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(text, str) or not text.strip():
        raise ManifestError(f"source of atoll.Service: found {source!r}, expected a file, a folder or a module")
    place, class_name = _split(text)
    path = os.path.abspath(os.path.expanduser(place))
    if place.endswith(".py"):
        return _from_file(path, class_name, given)
    manifest = _manifest_at(path, named=place.endswith((".yaml", ".yml")))
    if manifest is not None:
        if class_name is not None:
            raise ManifestError(f"{text!r}: a class is chosen under 'entry' of {manifest}, or by an option, not here")
        return _from_manifest(manifest, given)
    if _is_module(place) and not isinstance(source, os.PathLike):
        return _from_module(place, class_name, given)
    raise ManifestError(
        f"source of atoll.Service: found {text!r}, expected a .py file, a folder with a service.yaml, "
        f'or "package.module[:Class]"; ' + _what_is_there(path)
    )


def function_spec(name: str, **options: Any) -> ServiceSpec:
    """See ``atoll.manifest.function_spec``."""
    if "entry" in options:
        raise ManifestError("option entry of atoll.function: a function is its own entry")
    given = _options({"name": name, **options}, "atoll.function")
    return ServiceSpec(**given)


def _from_file(path: str, class_name: str | None, given: dict[str, Any]) -> ServiceSpec:
    if not os.path.isfile(path):
        raise ManifestError(f"{path}: there is no such file")
    values: dict[str, Any] = {"name": class_name or os.path.basename(path)[: -len(".py")]}
    for table, keys in read_header(path):
        _overlay(values, _layer(keys, Place.file(path, table)))
    values["entry"] = path if class_name is None else f"{path}:{class_name}"
    _overlay(values, given)
    return ServiceSpec(folder=os.path.dirname(path), **values)


def _from_manifest(path: str, given: dict[str, Any]) -> ServiceSpec:
    folder = os.path.dirname(path)
    place = Place.file(path)
    said = _layer(read_yaml(path), place)
    chosen = given.get("entry") or said.get("entry")
    if chosen is None:
        chosen = os.path.join(folder, "service.py")
        if not os.path.isfile(chosen):
            raise ManifestError(
                f"{path}: key entry: not there, expected the .py file or package.module that runs "
                f"(without it, a service.py beside the manifest)"
            )
    values: dict[str, Any] = {"name": os.path.basename(folder) or "service"}
    file, _ = _split(chosen)
    if os.path.isabs(file):
        for table, keys in read_header(file):
            _overlay(values, _layer(keys, Place.file(file, table)))
    values["entry"] = chosen
    _overlay(values, said)
    _overlay(values, given)
    return ServiceSpec(folder=folder, **values)


def _from_module(module: str, class_name: str | None, given: dict[str, Any]) -> ServiceSpec:
    values: dict[str, Any] = {
        "name": class_name or module.rpartition(".")[2],
        "entry": module if class_name is None else f"{module}:{class_name}",
    }
    _overlay(values, given)
    return ServiceSpec(folder=None, **values)


def _options(options: dict[str, Any], of: str) -> dict[str, Any]:
    """Options of a public name, checked. Unlike a manifest's, an unknown one is a slip of the pen."""
    for key in options:
        if key not in FIELDS:
            known = (*DOCUMENTED, *MORE_DOCUMENTED.get(of, ()))
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ManifestError(f"option {key} of {of}: there is no such option{hint} (there are: {', '.join(known)})")
    return _layer(options, Place.options(of))


def _layer(keys: dict[str, Any], place: Place) -> dict[str, Any]:
    """What one place says, checked: known keys as fields, the others under ``extra``."""
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in keys.items():
        field = "python" if key == "requires-python" else key.replace("-", "_")
        if field not in FIELDS:
            extra[key] = value
            continue
        if field in values:
            raise ManifestError(f"{place.wrong(key, value, 'the key once: it is also written with _ for -')}")
        if field == "dependencies" and isinstance(value, list):
            services = [one for one in value if isinstance(one, dict) and "service" in one]
            if services:
                # A manifest may also list the services it needs. Those are not packages: kept for the server.
                extra[key] = services
                value = [one for one in value if one not in services]
        if field == "entry":
            values[field] = _entry(key, value, place)
        elif value is not None or field in NULLABLE:
            values[field] = check_value(field, value, place.spelled(field, key))
        else:
            raise place.wrong(key, value, "a value (leave the key out for its default)")
    if extra:
        values["extra"] = extra
    return values


def _entry(key: str, value: object, place: Place) -> str:
    text: str = check_value("entry", value, place)
    file, class_name = _split(text)
    if file.endswith(".py"):
        path = os.path.normpath(os.path.join(place.base, os.path.expanduser(file)))
        if not os.path.isfile(path):
            raise place.wrong(key, text, f"a .py file that exists; there is none at {path}")
        return path if class_name is None else f"{path}:{class_name}"
    if _is_module(file):
        return text
    raise place.wrong(key, text, '"file.py", "package.module" or either with ":Class"')


def _overlay(values: dict[str, Any], later: dict[str, Any]) -> None:
    """Lay a later layer over the earlier ones, in place."""
    if later.get("environment") is not None:
        for key in _PACKAGES:
            values.pop(key, None)
    extra = {**values.get("extra", {}), **later.get("extra", {})}
    values.update(later)
    if extra:
        values["extra"] = extra


def _split(text: str) -> tuple[str, str | None]:
    """``place[:Class]`` -> place, class name."""
    place, colon, name = text.rpartition(":")
    if colon and place and name.isidentifier():
        return place, name
    return text, None


def _is_module(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _manifest_at(path: str, *, named: bool) -> str | None:
    """The manifest that a path means: itself, or the one in the folder."""
    if named or os.path.isfile(path):
        if not os.path.isfile(path):
            raise ManifestError(f"{path}: there is no such file")
        return path if named else None
    found = [name for name in MANIFEST_NAMES if os.path.isfile(os.path.join(path, name))]
    if len(found) > 1:
        raise ManifestError(f"{path}: found {' and '.join(found)}, expected one of them")
    return os.path.join(path, found[0]) if found else None


def _what_is_there(path: str) -> str:
    if os.path.isdir(path):
        return f"{path} is a folder without a service.yaml"
    return f"{path} is another kind of file" if os.path.exists(path) else f"there is nothing at {path}"
