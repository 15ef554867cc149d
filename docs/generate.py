# SPDX-License-Identifier: Apache-2.0
"""Writes docs/reference.md from the docstrings of everything public, and docs/supervision.svg from the tables of
the supervision policy. Run it with ``make docs``.

A test runs it with ``--check``, so neither can fall behind the code.
"""

from __future__ import annotations

import inspect
import sys
import typing
from pathlib import Path
from typing import Any

import supervision_diagram

import atoll
import atoll.extensions
import atoll_worker

PAGE = Path(__file__).parent / "reference.md"
DIAGRAM = Path(__file__).parent / "supervision.svg"
SOURCE = Path(__file__).parents[1] / "src"

_MADE_BY_USERS = {"Service", "ServiceBase", "ServiceClient", "ServicePool"}

SECTIONS: list[tuple[str, Any, list[str]]] = [
    (
        "Calling",
        atoll,
        [
            *("function", "Function", "RemoteFunction", "Service", "FunctionInfo", "Stream", "Call"),
            *("PoolStatus", "WorkerStatus", "shutdown"),
        ],
    ),
    ("Services of one object", atoll, ["ServiceClient", "ServicePool"]),
    ("Values", atoll, ["register"]),
    (
        "Arrays",
        atoll,
        [
            *("empty", "asarray", "memory", "MemoryStatus", "set_memory_budget", "trim_memory"),
            *("ArrayBuffer", "DeviceArray"),
        ],
    ),
    ("What stays where it is", atoll, ["ref", "RemoteObject", "ProxiedSingleton", "local"]),
    ("Tracing", atoll, ["traceparent"]),
    (
        "Extensions",
        atoll.extensions,
        [
            *("ExtensionManager", "ExtensionConfig", "load_manifest", "proxy_nodes"),
            *("check_pack", "PackReport", "Finding"),
        ],
    ),
    ("Manifests", atoll, ["ServiceSpec", "Restart", "Breaker", "Recycle", "Sandbox"]),
    (
        "Inside a worker",
        atoll_worker,
        [
            *(
                "expose",
                "Service",
                "ServiceBase",
                "ExtensionBase",
                "register",
                "host",
                "ref",
                "ProxiedSingleton",
                "local",
            ),
            *("cancelled", "Cancelled", "progress", "log", "traceparent", "run_worker", "empty", "asarray"),
            *("ArrayBuffer", "DeviceArray", "SegmentsExhausted"),
        ],
    ),
]


def render() -> str:
    """The whole page."""
    parts = [
        "# Reference\n",
        "Everything public, from the docstrings (`make docs` writes this page).\n",
    ]
    for title, module, names in SECTIONS:
        parts.append(f"## {title}\n")
        parts += [_entry(module, name) for name in names]
    errors = sorted(
        name for name in atoll.__all__ if inspect.isclass(one := getattr(atoll, name)) and issubclass(one, Exception)
    )
    parts.append("## Errors\n")
    tree = inspect.getdoc(sys.modules["atoll.errors"]) or ""
    parts.append("```text\n" + inspect.cleandoc(tree.split("::", 1)[1].split("``ValuesError``")[0]).strip() + "\n```\n")
    parts += [_entry(atoll, name) for name in errors]
    return "\n".join(parts).rstrip() + "\n"


def _entry(module: Any, name: str) -> str:
    thing = getattr(module, name)
    lines = [f"### `{module.__name__}.{name}`\n"]
    if inspect.isclass(thing) and issubclass(thing, Exception):
        bases = ", ".join(f"`{base.__name__}`" for base in thing.__bases__)
        lines.append(f"Derives from {bases}.\n")
    else:
        # A class's first arguments are atoll's own business, unless it is one that users make.
        shown = [_signature(one) for one in typing.get_overloads(thing)] if inspect.isfunction(thing) else []
        if not shown and (inspect.isfunction(thing) or name in _MADE_BY_USERS):
            shown = [_signature(thing)]
        if shown:
            lines.append("```text\n" + "\n".join(f"{name}{signature}" for signature in shown) + "\n```\n")
    lines.append(_text(thing))
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        for attribute in _own_attributes(thing):
            member = inspect.getattr_static(thing, attribute)
            inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not inspect.getdoc(inner):
                continue
            shown = attribute if isinstance(member, property) else attribute + (_signature(inner) or "()")
            lines.append(f"**`{shown}`**\n")
            lines.append(_text(inner))
    return "\n".join(lines)


def _own_attributes(cls: type) -> list[str]:
    """Names of its public methods and properties, with those of bases that are not public themselves."""
    members: dict[str, Any] = {}
    for one in (cls, *(base for base in cls.__mro__[1:] if base.__module__.startswith("atoll"))):
        if one is cls or one.__name__ not in atoll.__all__:
            members = {**vars(one), **members}
    public = [name for name in members if not name.startswith("_") or name == "__call__"]
    return [name for name in public if callable(members[name]) or isinstance(members[name], property | classmethod)]


def _signature(thing: Any) -> str | None:
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return None
    text = text.replace(" = Ellipsis", " = ...")
    return text.replace("'", "").replace("(self, ", "(").replace("(self)", "()").replace("(cls, ", "(")


def _text(thing: Any) -> str:
    """A docstring as Markdown: its Args, Returns, Raises and Attributes become lists."""
    lines: list[str] = []
    section = False
    for line in (inspect.getdoc(thing) or "").replace("``", "`").splitlines():
        stripped = line.strip()
        if stripped in ("Args:", "Returns:", "Raises:", "Attributes:"):
            lines += [f"*{stripped}*", ""]
            section = True
        elif section and line.startswith("    ") and not line.startswith("     "):
            lines.append(f"- {stripped}")
        elif section and line.startswith("     "):
            lines.append(f"  {stripped}")
        else:
            if stripped:
                section = False
            lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> int:
    files = {PAGE: render(), DIAGRAM: supervision_diagram.draw()}
    if "--check" in sys.argv[1:]:
        behind = [
            file.name for file, text in files.items() if not file.exists() or file.read_text(encoding="utf-8") != text
        ]
        for name in behind:
            print(f"{name} is behind the code; run `make docs`")
        return 1 if behind else 0
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
        print(f"wrote {file.name}: {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
