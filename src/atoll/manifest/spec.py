# SPDX-License-Identifier: Apache-2.0
"""``ServiceSpec``, the checks of its values, and the JSON Schema that is generated from it.

What always holds here: a value is checked where it was written, so that the error can name the place; a spec that
exists is right. What does not belong here: reading files (``sources``, ``script_header``, ``yaml_file``).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..errors import ManifestError
from ..python_versions import EXPECTED as _PYTHON_EXPECTED
from ..python_versions import is_path, parse_python
from .options import Breaker, Recycle, Restart, Sandbox
from .sizes import EXPECTED as _SIZE_EXPECTED
from .sizes import parse_size

_Seconds = Annotated[float, Meta(gt=0)]


class ServiceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One service: its code, what it needs, and how it is started. Made by ``load_spec`` or ``function_spec``."""

    name: Annotated[str, Meta(min_length=1, description="Name in messages and logs; the folder's name if not given.")]
    entry: Annotated[
        str,
        Meta(
            description="What runs: a .py file (relative to this manifest) or package.module, optionally with :Class. "
            "service.py beside the manifest if not given."
        ),
    ] = ""
    folder: str | None = None
    dependencies: Annotated[
        tuple[str, ...],
        Meta(description="Requirements (PEP 508), such as numpy==1.26.4, or ./folder of a local package."),
    ] = ()
    python: Annotated[
        str | None,
        Meta(description='Interpreter: a version ("3.12", in quotes), a specifier (">=3.11"), or a path.'),
    ] = None
    environment: Annotated[
        str | None,
        Meta(
            description="Path of an existing interpreter or virtual environment, which is used as it is; of a "
            "requirements.txt; or of a folder with pyproject.toml and uv.lock."
        ),
    ] = None
    env_vars: Annotated[dict[str, str], Meta(description="Environment variables to set for the worker.")] = {}
    start_timeout: Annotated[
        _Seconds,
        Meta(description="Seconds a worker may take until it is ready; building the environment does not count."),
    ] = 60.0
    timeout: Annotated[_Seconds | None, Meta(description="Seconds a call may take; null for no limit.")] = None
    indexes: Annotated[
        tuple[str, ...],
        Meta(description="Package indexes (URLs or folders), searched in order before this machine's own."),
    ] = ()
    find_links: Annotated[
        tuple[str, ...], Meta(description="Folders or pages that list further distribution files.")
    ] = ()
    lock: Annotated[
        str | None,
        Meta(description="A lock file (pinned requirements or pylock.toml) to install exactly as it is."),
    ] = None
    workers: Annotated[
        int, Meta(ge=1, le=1000, description="Processes that run the service, each with a copy of what it loads.")
    ] = 1
    concurrency: Annotated[
        int, Meta(ge=1, le=1000, description="Calls that one worker runs at the same time, on threads.")
    ] = 1
    max_queue: Annotated[
        int, Meta(ge=0, description="Calls that may wait for a worker; one more is refused at once.")
    ] = 100_000
    restart: Annotated[Restart, Meta(description="How a worker that ended unexpectedly is replaced.")] = Restart()
    breaker: Annotated[Breaker, Meta(description="When to stop starting workers that only fail.")] = Breaker()
    recycle: Annotated[Recycle, Meta(description="When to replace a worker that works.")] = Recycle()
    health_interval: Annotated[
        _Seconds | None,
        Meta(description="Seconds between two looks whether a worker still answers; null for none."),
    ] = 10.0
    preload: Annotated[
        tuple[str, ...],
        Meta(description="Modules to import once, in a process that new workers are forked from."),
    ] = ()
    memory: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description='Memory a worker may use: bytes, or text such as "2GB" or "512MiB"; null for no limit.'),
    ] = None
    memory_budget: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Shared memory that a worker may have for what it returns: bytes, or text such as "
            '"2GB"; null for a quarter of the machine\'s memory.'
        ),
    ] = None
    cpus: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Processors a worker may use, such as 0.5 or 2; null for no limit."),
    ] = None
    nice: Annotated[
        Annotated[int, Meta(ge=-20, le=19)] | None,
        Meta(description="Scheduling priority of a worker, from -20 (first) to 19 (last); null for the host's own."),
    ] = None
    open_files: Annotated[
        Annotated[int, Meta(ge=16)] | None,
        Meta(description="Files and sockets a worker may have open at the same time; null for the host's own limit."),
    ] = None
    sandbox: Annotated[
        Sandbox | None,
        Meta(description="What a worker may reach: nothing that is not named; null for no sandbox."),
    ] = None
    extra: dict[str, Any] = {}


# Not written by users: where the manifest lies, and the keys atoll does not know.
_DERIVED = ("folder", "extra")
FIELDS: Mapping[str, Any] = {
    field.name: field.type for field in msgspec.structs.fields(ServiceSpec) if field.name not in _DERIVED
}
# Where "nothing" is a value of its own: no limit, none at all.
NULLABLE = frozenset(
    {"timeout", "python", "environment", "lock", "health_interval", "sandbox"}
    | {"memory", "memory_budget", "cpus", "nice", "open_files"}
)
# The keys that hold several values, which are checked one by one.
_TABLES: Mapping[str, type[msgspec.Struct]] = {
    "restart": Restart,
    "breaker": Breaker,
    "recycle": Recycle,
    "sandbox": Sandbox,
}
_TYPES: dict[str, Any] = {
    **FIELDS,
    **{f"{key}.{field.name}": field.type for key, one in _TABLES.items() for field in msgspec.structs.fields(one)},
}

_TEXT = "text"
_PATH = "a path"
_SECONDS = "a number of seconds above 0"
_COUNT = "a whole number from 1 to 1000"
_EXPECTED = {
    "name": "text without slashes, colons or line breaks",
    "entry": '"file.py", "package.module" or either with ":Class"',
    "dependencies": 'a list of requirements, such as ["numpy==1.26.4"]',
    "python": _PYTHON_EXPECTED,
    "environment": "the path of an interpreter, a virtual environment, a requirements.txt or a uv.lock project",
    "env_vars": "a mapping of names to text (numbers and true/false in quotes)",
    "start_timeout": _SECONDS,
    "timeout": _SECONDS + ", or nothing for no limit",
    "indexes": "a list of URLs or folders",
    "find_links": "a list of URLs or folders",
    "lock": "the path of a lock file",
    "workers": _COUNT,
    "concurrency": _COUNT,
    "max_queue": "a whole number from 0",
    "health_interval": _SECONDS + ", or nothing for no looks",
    "preload": 'a list of module names, such as ["numpy", "scipy.linalg"]',
    "memory": _SIZE_EXPECTED + ", or nothing for no limit",
    "memory_budget": _SIZE_EXPECTED + ", or nothing for a quarter of the machine's memory",
    "cpus": "a number of processors above 0, such as 0.5 or 2, or nothing for no limit",
    "nice": "a whole number from -20 to 19, or nothing for the host's own",
    "open_files": "a whole number from 16, or nothing for the host's own limit",
    "restart.backoff": "a number of seconds from 0",
    "restart.backoff_max": "a number of seconds from 0",
    "restart.max_restarts": "a whole number from 0",
    "restart.window": _SECONDS,
    "breaker.failures": _COUNT,
    "breaker.cooldown": _SECONDS,
    "recycle.calls": _COUNT + ", or nothing for never",
    "recycle.age": _SECONDS + ", or nothing for never",
    "recycle.memory_growth": _SIZE_EXPECTED + ", or nothing for never",
    "sandbox.network": "true or false",
    "sandbox.read": "a list of files and folders",
    "sandbox.write": "a list of files and folders",
}


class Place:
    """Where a value was written: what an error calls it, and the folder its relative paths start from."""

    __slots__ = ("_describe", "base")

    def __init__(self, describe: Callable[[str], str], base: str) -> None:
        self._describe = describe
        self.base = base

    @classmethod
    def file(cls, path: str, table: str = "") -> Place:
        """Keys of a file; ``table`` is the TOML table they are in."""
        return cls(lambda key: f"{path}: key {table}{key}", os.path.dirname(path))

    @classmethod
    def options(cls, of: str) -> Place:
        """Keyword options of a public name."""
        return cls(lambda key: f"option {key} of {of}", os.getcwd())

    def spelled(self, key: str, written: str) -> Place:
        """The same place, where a key is written in another way, such as with - for _."""
        describe = self._describe
        return Place(lambda part: describe(written + part.removeprefix(key)), self.base)

    def wrong(self, key: str, found: object, expected: str) -> ManifestError:
        """The error for a wrong value."""
        return ManifestError(f"{self._describe(key)}: found {show(found)}, expected {expected}")

    def unknown(self, key: str, part: object, known: tuple[str, ...]) -> ManifestError:
        """The error for a key within the table ``key`` that it does not have."""
        near = difflib.get_close_matches(str(part).replace("-", "_"), known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return ManifestError(
            f"{self._describe(f'{key}.{part}')}: there is no such key{hint} (there are: {', '.join(known)})"
        )


def show(value: object) -> str:
    """A value for an error message: its repr, cut when long."""
    text = repr(value)
    if len(text) > 120:
        text = text[:100] + "…" + text[-19:]
    kind = {bool: " (true or false)", int: " (a number)", float: " (a number)"}.get(type(value), "")
    return text + kind


def check_value(key: str, value: object, place: Place) -> Any:
    """One value of a known key, checked, with its paths made absolute.

    Raises:
        ManifestError: it is wrong.
    """
    if key in _TABLES and value is not None:
        return _check_table(key, value, place)
    if key in _SIZES:
        return _check_size(key, value, place)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, tuple | set | frozenset):
        value = list(value)
    elif isinstance(value, Mapping):
        value = dict(value)
    if isinstance(value, list):
        value = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in value]
    try:
        converted = msgspec.convert(value, _TYPES[key])
    except msgspec.ValidationError as error:
        at, found = _locate(str(error), value)
        expected = _EXPECTED[key] if not at else f"{_TEXT} (the whole: {_EXPECTED[key]})"
        if key == "python" and type(value) in (int, float):
            expected += f', in quotes: "{value}"'
            if isinstance(value, float) and len(str(value).partition(".")[2]) == 1:
                expected += f' (or "{value}0": without quotes they are the same number)'
        raise place.wrong(key + at, found, expected) from None
    checker = _CHECKERS.get(key)
    return converted if checker is None else checker(key, converted, place)


def _check_table(key: str, value: object, place: Place) -> Any:
    """A value of several parts: its class (``atoll.Restart(…)``) or a mapping of its fields."""
    table = _TABLES[key]
    known = table.__struct_fields__
    if isinstance(value, table):
        # The class takes what it is given, so that making one stays a matter of nanoseconds.
        value = msgspec.structs.asdict(value)
    if not isinstance(value, Mapping):
        raise place.wrong(key, value, f"a mapping with {', '.join(known)} (or atoll.{table.__name__})")
    parts: dict[str, Any] = {}
    for part, one in value.items():
        if part not in known:
            raise place.unknown(key, part, known)
        parts[part] = check_value(f"{key}.{part}", one, place)
    made = table(**parts)
    if isinstance(made, Restart) and made.backoff_max < made.backoff:
        if "backoff_max" in parts:
            raise place.wrong(f"{key}.backoff_max", made.backoff_max, f"at least backoff, which is {made.backoff}")
        raise place.wrong(f"{key}.backoff", made.backoff, f"at most backoff_max, which is {made.backoff_max}")
    return made


def _locate(message: str, value: object) -> tuple[str, object]:
    """msgspec's ``… - at `$[2]` `` -> the part's name, the part. Keys of mappings are not spelled by it."""
    path = message.rpartition("at `$")[2].rstrip("`") if "at `$[" in message else ""
    if isinstance(value, list) and path.startswith("["):
        index = int(path[1 : path.index("]")])
        return f"[{index}]", value[index]
    if isinstance(value, dict) and path:
        for name, part in value.items():
            if not isinstance(name, str) or not isinstance(part, str):
                return f"[{name!r}]", part if isinstance(name, str) else name
    return "", value


def _check_name(key: str, value: str, place: Place) -> str:
    if not value.strip() or any(char in "/\\:" or not char.isprintable() for char in value):
        raise place.wrong(key, value, _EXPECTED[key])
    return value


def _check_dependencies(key: str, values: tuple[str, ...], place: Place) -> tuple[str, ...]:
    checked = []
    for index, value in enumerate(values):
        text = value.strip()
        at = f"{key}[{index}]"
        if text.startswith(("-r", "--requirement")):
            raise place.wrong(at, value, "a requirement; give the file itself as environment (environment=)")
        if text.startswith("-"):
            raise place.wrong(at, value, "a requirement, not an option of pip (editable installs would not be locked)")
        if not text or not text.isprintable() or text.startswith("#"):
            raise place.wrong(at, value, 'a requirement, such as "numpy==1.26.4"')
        checked.append(_absolute(text, place.base) if is_local(text) else text)
    return tuple(checked)


def is_local(requirement: str) -> bool:
    """Whether a requirement is the path of a local package, as opposed to a name or URL."""
    return requirement.startswith(("./", "../", "/", "~/")) or requirement in (".", "..")


def _check_python(key: str, value: str | None, place: Place) -> str | None:
    if value is None:
        return None
    try:
        parse_python(value)
    except ValueError as error:
        raise place.wrong(key, value, str(error)) from None
    return _absolute(value.strip(), place.base) if is_path(value.strip()) else value.strip()


def _check_path(key: str, value: str | None, place: Place) -> str | None:
    if value is None:
        return None
    if not value.strip() or "\0" in value:
        raise place.wrong(key, value, _EXPECTED[key])
    path = _absolute(value, place.base)
    if not os.path.exists(path):
        raise place.wrong(key, value, f"{_EXPECTED[key]}; there is nothing at {path}")
    return path


def _check_places(key: str, values: tuple[str, ...], place: Place) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if not value.strip() or not value.isprintable():
            raise place.wrong(f"{key}[{index}]", value, "a URL or a folder")
    return tuple(value if "://" in value else _absolute(value, place.base) for value in values)


def _check_env_vars(key: str, values: dict[str, str], place: Place) -> dict[str, str]:
    for name, value in values.items():
        if not name or "=" in name or "\0" in name + value:
            raise place.wrong(f"{key}[{name!r}]", value, "a name without '=' and a value without NUL")
    return values


def _check_positive(key: str, value: float | None, place: Place) -> float | None:
    # NaN passes no comparison, so no limit that compares would ever fire; infinity is spelled "nothing".
    if value is not None and not 0 < value < float("inf"):
        raise place.wrong(key, value, _EXPECTED[key])
    return value


_SIZES = ("memory", "memory_budget", "recycle.memory_growth")


def _check_size(key: str, value: Any, place: Place) -> int | None:
    try:
        size = None if value is None else parse_size(value)
    except ValueError:
        size = 0
    if size is not None and not 0 < size < 2**63:
        raise place.wrong(key, value, _EXPECTED[key])
    return size


def _check_preload(key: str, values: tuple[str, ...], place: Place) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if not all(part.isidentifier() for part in value.split(".")):
            raise place.wrong(f"{key}[{index}]", value, 'the name of a module, such as "numpy"')
    return values


def _check_reachable(key: str, values: tuple[str, ...], place: Place) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if not value.strip() or "\0" in value:
            raise place.wrong(f"{key}[{index}]", value, "the path of a file or folder")
    return tuple(_absolute(value, place.base) for value in values)


def _check_not_negative(key: str, value: float | None, place: Place) -> float | None:
    if value is not None and not 0 <= value < float("inf"):
        raise place.wrong(key, value, _EXPECTED[key])
    return value


_CHECKERS: dict[str, Callable[[str, Any, Place], Any]] = {
    "name": _check_name,
    "dependencies": _check_dependencies,
    "python": _check_python,
    "environment": _check_path,
    "lock": _check_path,
    "indexes": _check_places,
    "find_links": _check_places,
    "env_vars": _check_env_vars,
    "start_timeout": _check_positive,
    "timeout": _check_positive,
    "health_interval": _check_positive,
    "preload": _check_preload,
    "cpus": _check_positive,
    "restart.backoff": _check_not_negative,
    "restart.backoff_max": _check_not_negative,
    "restart.window": _check_positive,
    "breaker.cooldown": _check_positive,
    "recycle.age": _check_positive,
    "sandbox.read": _check_reachable,
    "sandbox.write": _check_reachable,
}


def _absolute(path: str, base: str) -> str:
    return os.path.normpath(os.path.join(base, os.path.expanduser(path)))


def manifest_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ``service.yaml``."""
    (schema,), definitions = msgspec.json.schema_components([ServiceSpec], ref_template="#/$defs/{name}")
    body = definitions[schema["$ref"].rpartition("/")[2]]
    properties = {key: value for key, value in body["properties"].items() if key in FIELDS}
    # The nanny's manifests list other services here; those entries are kept in ``extra``.
    properties["dependencies"]["items"] = {
        "anyOf": [
            {"type": "string", "description": "A requirement."},
            {
                "type": "object",
                "required": ["service"],
                "properties": {"service": {"type": "string"}},
                "description": "Another service; kept, not installed.",
            },
        ]
    }
    memory = {"type": "string", "description": 'Such as "500MB" or "512MiB".'}
    for size in ("memory", "memory_budget"):
        properties[size]["anyOf"].append(memory)
    for optional in ("name", "entry"):  # both have a default that depends on the folder
        properties[optional].pop("default", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "service.yaml",
        "description": "The manifest of an atoll service. Keys that are not listed here are kept, not refused.",
        "type": "object",
        "properties": properties,
        "additionalProperties": True,
        "$defs": {
            # Of a docstring the first sentences; each attribute has a description of its own.
            table.__name__: {**definitions[table.__name__], "description": _summary(table)}
            for table in _TABLES.values()
        },
    }


def _summary(table: type) -> str:
    return " ".join((table.__doc__ or "").partition("\n\n")[0].split())
