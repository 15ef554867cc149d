# SPDX-License-Identifier: Apache-2.0
"""What an extension is to be: ``ExtensionConfig``, or a ``manifest.yaml`` in the pack's folder.

What always holds here: every key is checked by the rules of ``service.yaml``, under the name it was written with. What
does not belong here: loading anything.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ManifestError

if TYPE_CHECKING:
    from ..manifest import Sandbox, ServiceSpec
    from ..manifest.spec import Place

MANIFEST_NAMES = ("manifest.yaml", "manifest.yml")

# Of a config -> of a spec. The others have one name.
_NAMES = {"max_memory": "memory", "max_cpu_percent": "cpus"}
_OWN = ("module_path", "version", "isolated", "share_torch", "hot_reload", "host", "modules")


@dataclasses.dataclass(frozen=True)
class ExtensionConfig:
    """What an extension is loaded with.

    Attributes:
        name: in messages and logs.
        module_path: the pack: a package's folder or a ``.py`` file.
        isolated: whether it runs in a process of its own; False loads it into this one, with the same interface.
        dependencies: requirements, such as ``"numpy==1.26.4"`` or ``"git+https://host/repository.git@v1.0"``.
        share_torch: whether its environment gets this process's version of torch, unless ``dependencies`` name one.
            Tensors cross without a copy either way, also between versions.
        python: a version (``"3.12"``), a specifier or the path of an interpreter; this process's own if None.
        environment: path of an existing environment, in place of ``dependencies``.
        timeout: seconds a call may take; None for no limit.
        start_timeout: seconds its process may take until it is ready; building the environment does not count.
        max_memory: bytes, or text such as ``"8GB"``; None for no limit.
        max_cpu_percent: 100 for one processor, 250 for two and a half; None for no limit.
        open_files: files and sockets it may have open; None for this process's own limit.
        sandbox: True to let it reach its environment and code only; an ``atoll.Sandbox`` or a mapping of its fields to
            say what else.
        workers: processes that run it.
        concurrency: calls that one of them runs at the same time, on threads.
        env_vars: environment variables to set for it.
        indexes: package indexes, searched in order before this machine's own.
        find_links: folders or pages that list further distribution files.
        host: objects of this process that it may call, by name, as ``from atoll_worker import host`` gives them.
        modules: modules of this process that it may import, by name, such as ``{"folder_paths": folder_paths}``: the
            functions and classes that they define are called here, and their plain data is read from here.
        hot_reload: whether its files are looked at before every call, and loaded anew when they changed.
        version: its author's; kept, and shown.
    """

    name: str
    module_path: str | os.PathLike[str] | None = None
    _: dataclasses.KW_ONLY
    isolated: bool = True
    dependencies: Sequence[str] = ()
    share_torch: bool = False
    python: str | None = None
    environment: str | os.PathLike[str] | None = None
    timeout: float | None = None
    start_timeout: float | None = None
    max_memory: int | str | None = None
    max_cpu_percent: float | None = None
    open_files: int | None = None
    sandbox: bool | Sandbox | Mapping[str, Any] | None = None
    workers: int = 1
    concurrency: int = 1
    env_vars: Mapping[str, str] = dataclasses.field(default_factory=dict)
    indexes: Sequence[str] = ()
    find_links: Sequence[str] = ()
    host: Mapping[str, object] = dataclasses.field(default_factory=dict)
    modules: Mapping[str, object] = dataclasses.field(default_factory=dict)
    hot_reload: bool = False
    version: str | None = None

    @classmethod
    def from_manifest(cls, folder: str | os.PathLike[str], **options: Any) -> ExtensionConfig:
        """The config that a pack's ``manifest.yaml`` asks for.

        Args:
            folder: the pack's.
            options: fields that go before what the manifest says.

        Raises:
            ManifestError: there is no manifest, or it or an option holds a wrong value.
        """
        unknown = next((key for key in options if key not in _FIELDS), None)
        if unknown is not None:
            raise ManifestError(f"option {unknown} of ExtensionConfig: there is no such option{_hint(unknown)}")
        said = {key: value for key, value in load_manifest(folder).items() if key in _FIELDS}
        return cls(**{"module_path": os.path.abspath(folder), **said, **options})

    def path(self) -> str:
        """The pack's absolute path.

        Raises:
            ManifestError: none was given, or there is nothing.
        """
        if self.module_path is None:
            raise ManifestError(f"extension {self.name!r}: option module_path: not given, expected the pack's folder")
        path = os.path.abspath(os.path.expanduser(os.fspath(self.module_path)))
        file = os.path.join(path, "__init__.py") if os.path.isdir(path) else path
        if not file.endswith(".py") or not os.path.isfile(file):
            raise ManifestError(
                f"extension {self.name!r}: option module_path: found {path}, expected a folder with an __init__.py, "
                "or a .py file"
            )
        return path

    def spec(self) -> ServiceSpec:
        """The service that runs it.

        Raises:
            ManifestError: a wrong value.
        """
        from ..manifest import ServiceSpec
        from ..manifest.spec import Place

        path = self.path()
        said = {field: value for field in _FIELDS if (value := getattr(self, field)) is not None and value != ()}
        values = _checked(said, Place.options("ExtensionConfig"))
        if self.share_torch and not any(_project(one) == "torch" for one in values.get("dependencies", ())):
            values["dependencies"] = (*values.get("dependencies", ()), *_torch_here())
        return ServiceSpec(entry=path, folder=os.path.dirname(path), **values)


_FIELDS = tuple(field.name for field in dataclasses.fields(ExtensionConfig))


def _checked(said: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Keys of a config -> checked fields of a spec."""
    from ..manifest import Sandbox
    from ..manifest.spec import check_value

    values: dict[str, Any] = {}
    for key, value in said.items():
        if key in ("isolated", "share_torch", "hot_reload"):
            if not isinstance(value, bool):
                raise place.wrong(key, value, "true or false")
        elif key == "version":
            if not isinstance(value, str):
                raise place.wrong(key, value, f'text, in quotes: "{value}"')
        elif key == "sandbox" and isinstance(value, bool):
            if value:
                values[key] = Sandbox()
        elif key == "max_cpu_percent":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise place.wrong(key, value, "a number above 0: 100 for one processor")
            values["cpus"] = value / 100
        elif key in ("host", "modules"):
            continue  # checked where it is used
        elif key not in _OWN:
            field = _NAMES.get(key, key)
            values[field] = check_value(field, value, place.spelled(field, key))
    return values


def load_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a pack's ``manifest.yaml`` says, checked; keys that are not of ``ExtensionConfig`` are kept as they are.

    ``name`` is the folder's if it is not said, and ``isolated`` is true.

    Raises:
        ManifestError: there is none, or it holds a wrong value.
    """
    from ..manifest.spec import Place
    from ..manifest.yaml_file import read_yaml

    folder = os.path.abspath(os.path.expanduser(os.fspath(folder)))
    path = next((path for name in MANIFEST_NAMES if os.path.isfile(path := os.path.join(folder, name))), None)
    if path is None:
        raise ManifestError(
            f"{folder}: there is no {MANIFEST_NAMES[0]}; a pack without one is loaded by an ExtensionConfig(name, path)"
        )
    said = read_yaml(path)
    place = Place.file(path)
    for key in ("module_path", "host", "modules"):
        if key not in said:
            continue
        raise place.wrong(key, said[key], "no such key: the host gives it, not the pack")
    checked = _checked({key: value for key, value in said.items() if key in _FIELDS and value is not None}, place)
    said.setdefault("name", os.path.basename(folder))
    said.setdefault("isolated", True)
    for key in ("dependencies", "environment", "find_links", "indexes", "python", "sandbox"):
        value = checked.get(key)
        if value is not None:  # with their paths made absolute
            said[key] = list(value) if isinstance(value, tuple) else value
    for key in said:
        near = None if key in _FIELDS else _near(key)
        if near is not None:
            import logging

            logging.getLogger("atoll.extensions").warning(
                "%s: key %s: not a key of an extension, so it has no effect; did you mean %s?", path, key, near
            )
    return said


def _near(key: str) -> str | None:
    return next(iter(difflib.get_close_matches(str(key).replace("-", "_"), _FIELDS, 1, cutoff=0.75)), None)


def _hint(key: str) -> str:
    near = _near(key)
    return f"; did you mean {near}?" if near else f" (there are: {', '.join(_FIELDS)})"


def _project(requirement: str) -> str:
    import re

    return re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0].lower()


def _torch_here() -> tuple[str, ...]:
    """This process's torch as a requirement, found without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return (f"torch=={version('torch').partition('+')[0]}",)
    except PackageNotFoundError:
        return ()  # there is none to share
