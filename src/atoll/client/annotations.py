# SPDX-License-Identifier: Apache-2.0
"""What a service's annotations mean in the host, which has the standard library but not the service's packages.

From the text of an annotation to the text of one that type checkers accept over here, and the imports it needs. What
the host cannot know becomes ``Any``, and is remembered by name.

What always holds here: nothing of the service is imported or run. What does not belong here: which functions there are
(``exposed``), and what is written about them (``stubs``).
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import sys
import typing
from collections.abc import Collection, Mapping

# How many parameters a generic class has that may be written without any, which strict type checkers refuse.
_GENERIC = {
    1: "list set frozenset type deque Counter List Set FrozenSet Type Deque AbstractSet MutableSet Sequence "
    "MutableSequence Iterable Iterator Collection Container Reversible AsyncIterable AsyncIterator Awaitable "
    "KeysView ValuesView Pattern Match PathLike Queue Future Popen CompletedProcess array",
    2: "dict defaultdict OrderedDict ChainMap Dict DefaultDict Mapping MutableMapping ItemsView AsyncGenerator",
    3: "Generator Coroutine",
}
_PARAMETERS = {name: count for count, names in _GENERIC.items() for name in names.split()}
_NUMPY_GENERIC = frozenset({"dtype", "number", "integer", "signedinteger", "unsignedinteger", "inexact", "floating"})

# Of typing: what means nothing outside the class or function that it was written in.
_ONLY_THERE = frozenset({"Self", "TypeVar", "ParamSpec", "Generic", "Protocol", "Concatenate", "Unpack", "ClassVar"})

_STREAMS = frozenset(
    {"Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator"}
)  # fmt: skip

_NUMPY = importlib.util.find_spec("numpy") is not None


_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Names:
    """What a module's names stand for, as far as its text tells.

    Attributes:
        imports: name -> dotted path of what was imported under it.
        definitions: name -> what the module defines: a class, a function, or what was assigned.
    """

    def __init__(self, imports: Mapping[str, str], definitions: Mapping[str, ast.AST]) -> None:
        self.imports = imports
        self.definitions = definitions

    def path(self, node: ast.expr) -> str | None:
        """The dotted path of a name or attribute; ``builtins.int`` and such included. None if it is the module's own,
        or no name at all."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        own = self.definitions.get(node.id)
        if own is not None and not (isinstance(own, _FUNCTION) and _is_builtin_type(node.id)):
            return None  # of a function called `list`, annotations do not speak
        if node.id in self.imports:
            root = self.imports[node.id]
        elif hasattr(builtins, node.id) and not parts:
            root = f"builtins.{node.id}"
        else:
            return None
        return ".".join([root, *reversed(parts)])


class Translator:
    """Turns annotations into text, and keeps what that text needs.

    Attributes:
        unknown: names that became ``Any``, in order, each once.
        typed_dicts: name -> the text of its class, of the TypedDict classes that were used.
    """

    def __init__(self, names: Names, taken: Collection[str]) -> None:
        """``taken``: names that must not be imported as they are, since the generated module uses them itself."""
        self._names = names
        self._taken = set(taken)
        classes = {name for name, node in names.definitions.items() if isinstance(node, ast.ClassDef)}
        self._not_for_imports = self._taken | classes
        self._imports: dict[str, tuple[str, str]] = {}  # name in the generated module -> module, name there
        self._within: list[str] = []
        self.unknown: dict[str, None] = {}
        self.typed_dicts: dict[str, str] = {}

    def of(self, annotation: ast.expr | None) -> str:
        """The text of an annotation; ``Any`` where there is none."""
        if annotation is None:
            return self.named("typing", "Any")
        return self._translate(annotation)

    def streamed(self, annotation: ast.expr | None) -> str:
        """The text of what a generator function yields, of the annotation of what it returns."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = _parsed(annotation.value)
        if isinstance(annotation, ast.Subscript):
            path = self._names.path(annotation.value) or ""
            if path.rpartition(".")[2] in _STREAMS:
                inner = annotation.slice
                return self.of(inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
        return self.named("typing", "Any")

    def named(self, module: str, name: str) -> str:
        """The name under which something importable is known in the generated module."""
        if module == "builtins" and name not in self._not_for_imports:
            return name
        known = name
        while known in self._not_for_imports or self._imports.get(known, (module, name)) != (module, name):
            known = f"_{known}"
        self._imports[known] = (module, name)
        return known

    def import_lines(self) -> list[str]:
        """The import statements for everything that ``named`` gave out."""
        by_module: dict[str, list[str]] = {}
        for known, (module, name) in self._imports.items():
            by_module.setdefault(module, []).append(name if known == name else f"{name} as {known}")
        return [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(by_module.items())]

    # -- one node ----------------------------------------------------------------------------------------------

    def _translate(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                parsed = _parsed(node.value)
                return self._unknown(node.value) if parsed is None else self._translate(parsed)
            return "None" if node.value is None else "..." if node.value is ... else self._unknown(ast.unparse(node))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self._union([node.left, node.right])
        if isinstance(node, ast.List):  # the parameters of a Callable
            return f"[{', '.join(map(self._translate, node.elts))}]"
        if isinstance(node, ast.Subscript):
            return self._subscript(node)
        if isinstance(node, ast.Name | ast.Attribute):
            return self._name(node)
        return self._unknown(ast.unparse(node))

    def _union(self, members: list[ast.expr]) -> str:
        texts = list(dict.fromkeys(map(self._translate, members)))
        return " | ".join(texts)

    def _name(self, node: ast.Name | ast.Attribute) -> str:
        own = self._own(node)
        if own is not None:
            return own
        found = self._importable(node)
        if found is None:
            return self._unknown(ast.unparse(node))
        module, name = found
        any_type = self.named("typing", "Any")
        if module == "numpy" and name == "ndarray":
            return f"{self.named('numpy.typing', 'NDArray')}[{any_type}]"
        if module == "numpy" and name in _NUMPY_GENERIC:
            return f"{self.named(module, name)}[{any_type}]"
        if module in _WITH_GENERICS:
            if name in ("tuple", "Tuple"):
                return f"{self.named('builtins', 'tuple')}[{any_type}, ...]"
            if name == "Callable":
                return f"{self.named('collections.abc', name)}[..., {any_type}]"
            if name in _PARAMETERS:
                return f"{self.named(module, name)}[{', '.join([any_type] * _PARAMETERS[name])}]"
        return self.named(module, name)

    def _subscript(self, node: ast.Subscript) -> str:
        arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        found = self._importable(node.value) if isinstance(node.value, ast.Name | ast.Attribute) else None
        if found is None:
            return self._unknown(ast.unparse(node.value))
        module, name = found
        if module == "typing" and name == "Optional":
            return self._union([arguments[0], ast.Constant(None)])
        if module == "typing" and name == "Union":
            return self._union(arguments)
        if module == "typing" and name == "Annotated":
            return self._translate(arguments[0])
        if module == "typing" and name == "Literal":
            if not all(_is_plain_literal(one) for one in arguments):
                return self._unknown(ast.unparse(node))  # of an Enum's members, which the service defines
            inner = ", ".join(map(ast.unparse, arguments))
        elif not arguments:  # tuple[()]
            inner = "()"
        else:
            inner = ", ".join(map(self._translate, arguments))
        return f"{self.named(module, name)}[{inner}]"

    def _importable(self, node: ast.expr) -> tuple[str, str] | None:
        """Module and name of what the host can import too."""
        path = self._names.path(node)
        if path is None:
            return None
        module, _, name = path.rpartition(".")
        if module == "typing_extensions":
            module = "typing"
        if module == "typing" and name in _ONLY_THERE:
            return None
        top = module.partition(".")[0]
        if top == "numpy":
            return (module, name) if _NUMPY and _exists(module, name) else None
        if top not in sys.stdlib_module_names or not _exists(module, name):
            return None
        if module == "builtins" and not _is_builtin_type(name):
            return None
        return module, name

    # -- what the service defines itself ------------------------------------------------------------------------

    def _own(self, node: ast.expr) -> str | None:
        """The text for a name that the service's module defines: an alias, or a TypedDict, which is a dict here."""
        definition = self._names.definitions.get(node.id) if isinstance(node, ast.Name) else None
        if definition is None or not isinstance(node, ast.Name):
            return None
        if isinstance(definition, ast.ClassDef):
            return self._typed_dict(definition)
        if isinstance(definition, ast.expr) and node.id not in self._within and _looks_like_a_type(definition):
            self._within.append(node.id)
            try:
                return self._translate(definition)
            finally:
                self._within.pop()
        return None

    def _typed_dict(self, definition: ast.ClassDef) -> str | None:
        if not self._is_typed_dict(definition):
            return None
        name = definition.name
        while name in self._taken and name not in self.typed_dicts:
            name = f"_{name}"
        if name in self.typed_dicts:
            return name
        self.typed_dicts[name] = ""  # it may hold itself
        bases = []
        for base in definition.bases:
            own = self._own(base)
            bases.append(own if own is not None else self.named("typing", "TypedDict"))
        bases += [f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in definition.keywords]
        fields = [
            f"    {one.target.id}: {self._field(one.annotation)}"
            for one in definition.body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        ]
        del self.typed_dicts[name]  # after those that it holds
        self.typed_dicts[name] = "\n".join([f"class {name}({', '.join(bases)}):", *(fields or ["    pass"])])
        return name

    def _field(self, annotation: ast.expr) -> str:
        if isinstance(annotation, ast.Subscript):
            path = self._names.path(annotation.value) or ""
            module, _, name = path.rpartition(".")
            if module in ("typing", "typing_extensions") and name in ("Required", "NotRequired"):
                return f"{self.named('typing', name)}[{self._translate(annotation.slice)}]"
        return self._translate(annotation)

    def _is_typed_dict(self, definition: ast.ClassDef) -> bool:
        for base in definition.bases:
            if self._names.path(base) in ("typing.TypedDict", "typing_extensions.TypedDict"):
                continue
            above = self._names.definitions.get(base.id) if isinstance(base, ast.Name) else None
            if not (isinstance(above, ast.ClassDef) and above is not definition and self._is_typed_dict(above)):
                return False
        return bool(definition.bases)

    def _unknown(self, text: str) -> str:
        self.unknown[text] = None
        return self.named("typing", "Any")


_WITH_GENERICS = frozenset(
    {"builtins", "typing", "collections", "collections.abc", "re", "os", "queue", "asyncio", "concurrent.futures",
     "subprocess", "array"}
)  # fmt: skip


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None


def _exists(module: str, name: str) -> bool:
    if module in ("typing", "builtins"):
        return hasattr(typing if module == "typing" else builtins, name)
    try:
        return hasattr(importlib.import_module(module), name)
    except Exception:  # noqa: BLE001 - a module of another system, or one that cannot be imported here
        return False


def _is_builtin_type(name: str) -> bool:
    return isinstance(getattr(builtins, name, None), type)


def _is_plain_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _looks_like_a_type(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitOr) and _looks_like_a_type(node.left) and _looks_like_a_type(node.right)
    if isinstance(node, ast.Constant):
        return node.value is None
    return isinstance(node, ast.Name | ast.Attribute | ast.Subscript)
