# SPDX-License-Identifier: Apache-2.0
"""What a service exposes, read from its text: the same rules as ``atoll_worker.service``, without running it.

No environment is needed, and no worker is started. What only running the code would tell is not seen: functions that
are exposed in a loop or by a decorator of the user's, and methods that come from base classes in other files.

What does not belong here: what annotations mean elsewhere (``annotations``).
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import ManifestError
from .annotations import Names

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_MODULES = ("atoll_worker", "atoll_worker.service", "atoll_worker.faces.stdio")
_BASES = ("Service", "ServiceBase")


class Exposed(NamedTuple):
    """One exposed function.

    Attributes:
        name: what callers call it.
        node: its definition.
        is_method: whether its first parameter is the object, which callers do not pass.
    """

    name: str
    node: _Function
    is_method: bool


class ServiceText(NamedTuple):
    """What the text of a service tells.

    Attributes:
        path: the file.
        doc: the docstring of its class, if it has one, or of the module.
        functions: what it exposes, in the order it is written.
        names: what its names stand for.
        unseen: base classes of its services that other files define.
    """

    path: str
    doc: str
    functions: tuple[Exposed, ...]
    names: Names
    unseen: tuple[str, ...]


def read_service(entry: str) -> ServiceText:
    """Read what an entry exposes.

    Args:
        entry: ``/path/file.py`` or ``package.module``, either with ``:Class``, as a ``ServiceSpec`` has it.

    Raises:
        ManifestError: the file cannot be found, read or parsed, has no such class, or exposes nothing.
    """
    place, colon, class_name = entry.rpartition(":")
    if not colon or not place or not class_name.isidentifier():
        place, class_name = entry, ""
    path = place if place.endswith(".py") else _file_of_module(place)
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read(), path)
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        version = ".".join(map(str, sys.version_info[:2]))
        raise ManifestError(f"{path}: is no Python {version}, which this is run with: {error}") from error
    return _Reader(path, tree).read(class_name)


def _file_of_module(module: str) -> str:
    """Without importing anything: a parent package's code would be run."""
    for folder in ("", *sys.path):
        base = os.path.abspath(os.path.join(folder, *module.split(".")))
        for path in (f"{base}.py", os.path.join(base, "__init__.py")):
            if os.path.isfile(path):
                return path
    raise ManifestError(
        f"module {module!r}: its file is not below this folder, nor anywhere on this interpreter's path; name the file"
    )


class _Reader:
    def __init__(self, path: str, tree: ast.Module) -> None:
        self._path = path
        self._tree = tree
        self._names = Names(_imports(tree), _definitions(tree))
        self._unseen: dict[str, None] = {}

    def read(self, class_name: str) -> ServiceText:
        found: dict[str, Exposed] = {}
        classes = {
            name: node for name, node in self._names.definitions.items()
            if isinstance(node, ast.ClassDef) and self._is_service(node)
        }  # fmt: skip
        doc_of: ast.ClassDef | ast.Module = self._tree
        if class_name:
            if class_name not in classes:
                raise ManifestError(
                    f"{self._path} has no Service class {class_name!r}; its services are: {sorted(classes) or 'none'}"
                )
            chosen = [classes[class_name]]
        else:
            bases = {id(base) for one in classes.values() for base in self._order(one)[1:]}
            chosen = [one for one in classes.values() if id(one) not in bases]
            for node in self._names.definitions.values():
                if isinstance(node, _Function):
                    self._add(found, self._marked(node, self._tree.body), node, is_method=False)
        for one in chosen:
            self._add_class(found, one)
        if len(chosen) == 1 and (class_name or not ast.get_docstring(self._tree)):
            doc_of = chosen[0]
        if not found:
            raise ManifestError(
                f"{self._path} exposes nothing that can be seen in its text: mark functions, or methods of a Service "
                "class, with @expose"
            )
        functions = sorted(found.values(), key=lambda one: one.node.lineno)
        return ServiceText(
            self._path, ast.get_docstring(doc_of) or "", tuple(functions), self._names, tuple(self._unseen)
        )

    def _add(self, found: dict[str, Exposed], name: str | None, node: _Function, *, is_method: bool) -> None:
        if name is None:
            return
        other = found.get(name)
        if other is not None and other.node is not node:
            raise ManifestError(
                f"{self._path}: two functions are exposed as {name!r}, in lines {other.node.lineno} and {node.lineno}; "
                "give one of them another name with @expose(name=...), or choose one class with 'file.py:Class'"
            )
        found[name] = Exposed(name, node, is_method)

    def _add_class(self, found: dict[str, Exposed], cls: ast.ClassDef) -> None:
        seen: set[str] = set()
        for one in self._order(cls):
            for base in one.bases:
                path = self._names.path(base)
                if path is not None and not self._is_base(path):
                    self._unseen[path] = None
            for name, node in _in_class(one).items():
                if name not in seen and isinstance(node, _Function):
                    plain = any(
                        isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list
                    )
                    exposed = self._marked(node, one.body)
                    if name == "process" and self._is_service(cls, "ServiceBase"):
                        exposed = name
                    self._add(found, exposed, node, is_method=not plain)
                seen.add(name)  # an override that is not exposed hides one that is

    def _order(self, cls: ast.ClassDef) -> list[ast.ClassDef]:
        """The class and those of its bases that this file defines, nearest first."""
        found = [cls]
        for base in cls.bases:
            above = self._names.definitions.get(base.id) if isinstance(base, ast.Name) else None
            if isinstance(above, ast.ClassDef) and above is not cls and above.lineno < cls.lineno:
                found += [one for one in self._order(above) if one not in found]
        return found

    def _is_service(self, cls: ast.ClassDef, base_name: str = "") -> bool:
        """Whether a class derives from one of atoll's bases of services, or from the one of this name."""
        return any(
            self._is_base(self._names.path(base) or "", base_name) for one in self._order(cls) for base in one.bases
        )

    def _is_base(self, path: str, name: str = "") -> bool:
        return any(self._is_worker_name(path, one) for one in ((name,) if name else _BASES))

    def _is_worker_name(self, path: str, name: str) -> bool:
        return any(path == f"{module}.{name}" for module in _MODULES)

    def _marked(self, node: _Function, siblings: Sequence[ast.stmt]) -> str | None:
        """The name that a definition is exposed under; None if it is not."""
        for mark in node.decorator_list:
            name = self._name_given(mark, node.name)
            if name is not None:
                return name
        for statement in siblings:  # expose(function), expose(name="other")(function)
            value = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
            if isinstance(value, ast.Call) and any(isinstance(one, ast.Name) and one.id == node.name
                                                   for one in value.args):  # fmt: skip
                name = self._name_given(
                    value.func if not value.keywords else ast.Call(value.func, [], value.keywords), node.name
                )
                if name is not None:
                    return name
        return None

    def _name_given(self, mark: ast.expr, own: str) -> str | None:
        called = mark.func if isinstance(mark, ast.Call) else mark
        if not self._is_worker_name(self._names.path(called) or "", "expose"):
            return None
        if isinstance(mark, ast.Call):
            for keyword in mark.keywords:
                if keyword.arg == "name" and isinstance(keyword.value, ast.Constant) and keyword.value.value:
                    return str(keyword.value.value)
        return own


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module or class, and those under its ``if``, ``try`` and ``with``, last branch first: the branch that
    comes first is the usual one, and the last to be seen wins."""
    for statement in body:
        yield statement
        parts = [getattr(statement, name, []) for name in ("orelse", "finalbody", "body")]
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)
            for part in parts:
                yield from _statements(part)


def _imports(tree: ast.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    for statement in _statements(tree.body):
        if isinstance(statement, ast.Import):
            for one in statement.names:
                if one.asname:
                    found[one.asname] = one.name
                else:
                    top = one.name.partition(".")[0]
                    found[top] = top
        elif isinstance(statement, ast.ImportFrom):
            module = "." * statement.level + (statement.module or "")
            for one in statement.names:
                found[one.asname or one.name] = f"{module}.{one.name}"
    return found


def _definitions(tree: ast.Module) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    for statement in _statements(tree.body):
        if isinstance(statement, ast.ClassDef | _Function):
            if not _is_overload(statement):
                found[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            found[statement.target.id] = statement.value
        elif type(statement).__name__ == "TypeAlias":  # from Python 3.12 on
            found[statement.name.id] = statement.value  # type: ignore[attr-defined]
    return found


def _in_class(cls: ast.ClassDef) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    for statement in _statements(cls.body):
        if isinstance(statement, _Function):
            if not _is_overload(statement):
                found[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            found.update((target.id, statement) for target in statement.targets if isinstance(target, ast.Name))
    return found


def _is_overload(statement: ast.stmt) -> bool:
    return any(
        (isinstance(mark, ast.Name) and mark.id == "overload")
        or (isinstance(mark, ast.Attribute) and mark.attr == "overload")
        for mark in getattr(statement, "decorator_list", ())
    )
