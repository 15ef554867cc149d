# SPDX-License-Identifier: Apache-2.0
"""What of a pack of nodes can run isolated, and why not: read from its text, nothing of it is run.

What always holds here: a finding names a file, a line, what was found and what to do. A pack that passes may still do
what its text does not show. What does not belong here: loading packs.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from atoll_worker.host_modules import OF_HOST
from atoll_worker.node_interface import NAMES, VERSIONS

from ..errors import ManifestError
from .config import MANIFEST_NAMES, load_manifest

# Inputs that cross by value; every other is passed as a reference.
_BY_VALUE = frozenset(
    ("IMAGE", "MASK", "LATENT", "AUDIO", "INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "CONDITIONING", "SIGMAS",
     "NOISE_MASK", "NUMBER", "DICT", "LIST", "JSON", "*")
)  # fmt: skip
_SKIPPED = frozenset(("__pycache__", "tests", "test", "node_modules"))
_KNOWN_BASES = ("ComfyNode", "ComfyNodeV3")


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        level: ``"no"``: what uses it cannot run isolated as it is; ``"look"``: it can, if what is said is so.
        place: file and line, relative to the pack's folder.
        node: the node's class it belongs to; empty if it is the whole file's.
        text: what was found, and what to do.
    """

    level: str
    place: str
    node: str
    text: str


class PackReport(NamedTuple):
    """What a pack's text tells.

    Attributes:
        path: the pack.
        nodes: its node classes by name -> ``"yes"``, ``"look"`` or ``"no"``.
        findings: everything that was found, in the order of the files.
    """

    path: str
    nodes: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def can_be_isolated(self) -> bool:
        """Whether nothing speaks against it."""
        return not any(finding.level == "no" for finding in self.findings)


def check_pack(path: str | os.PathLike[str], modules: Iterable[str] = ()) -> PackReport:
    """Read a pack, and say what of it can run isolated.

    Args:
        path: its folder, or its file.
        modules: names of the modules that its host will offer: ``modules`` of its ``ExtensionConfig``.

    Raises:
        ManifestError: there is no such pack, or its manifest is wrong.
    """
    root = os.path.abspath(os.path.expanduser(os.fspath(path)))
    folder = root if os.path.isdir(root) else os.path.dirname(root)
    if not os.path.isfile(os.path.join(root, "__init__.py")) and not (root.endswith(".py") and os.path.isfile(root)):
        raise ManifestError(f"{root}: found no __init__.py, expected a package's folder, or a .py file")
    findings: list[Finding] = []
    nodes: dict[str, str] = {}
    own = _own_modules(root)
    offered = frozenset(modules)
    imported: dict[str, str] = {}
    for file in _files(root):
        place = os.path.relpath(file, folder)
        reader = _File(place, own, offered)
        try:
            with open(file, "rb") as text:
                reader.read(ast.parse(text.read(), file))
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            findings.append(Finding("no", f"{place}:{line}", "", f"is no Python: {error}"))
        except (RecursionError, MemoryError):
            said = "is nested too deeply to be read, so nothing is known of it"
            findings.append(Finding("look", f"{place}:1", "", said))
        findings += reader.findings
        nodes.update(reader.nodes)
        for name, where in reader.imported.items():
            imported.setdefault(name, where)
    findings += _packages(root, folder, imported)
    if not nodes:
        said = "no node class can be seen in its text; its methods can be called"
        findings.append(Finding("look", os.path.basename(root), "", said))
    return PackReport(root, nodes, tuple(findings))


def _files(root: str) -> Iterator[str]:
    if os.path.isfile(root):
        yield root
        return
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        for name in sorted(files):
            if name.endswith(".py"):
                yield os.path.join(folder, name)


def _own_modules(root: str) -> frozenset[str]:
    """Names at the pack's top: what imports them means the pack's own."""
    folder = root if os.path.isdir(root) else os.path.dirname(root)
    names = {os.path.basename(root).removesuffix(".py")}
    for entry in os.scandir(folder):
        if entry.name.endswith(".py") or entry.is_dir():
            names.add(entry.name.removesuffix(".py"))
    return frozenset(names)


def _packages(root: str, folder: str, imported: dict[str, str]) -> Iterator[Finding]:
    """Whether the manifest names what is imported."""
    manifest = next((name for name in MANIFEST_NAMES if os.path.isfile(os.path.join(folder, name))), None)
    third = {name: where for name, where in imported.items() if name not in sys.stdlib_module_names}
    if manifest is None:
        listed = ", ".join(sorted(third)) or "none"
        requirements = os.path.isfile(os.path.join(folder, "requirements.txt"))
        more = "; requirements.txt says which" if requirements else ""
        yield Finding(
            "look", MANIFEST_NAMES[0], "",
            f"not there: write one with name, isolated: true and dependencies; imported are: {listed}{more}",
        )  # fmt: skip
        return
    said = load_manifest(folder)
    if not said["isolated"]:
        yield Finding("look", manifest, "", "says isolated: false, so it runs in the host as it is")
    if said.get("environment"):
        return
    named = {_plain(one) for one in said.get("dependencies") or ()}
    if said.get("share_torch"):
        named.add("torch")
    for name, where in sorted(third.items()):
        known = {name, *_PROJECTS.get(name, ())}
        if named and not {_plain(one) for one in known} & named:
            yield Finding(
                "look", where, "",
                f"imports {name}, which no dependency of {manifest} is named after: add it, unless another brings it",
            )  # fmt: skip


# Packages whose modules have another name.
_PROJECTS = {
    "PIL": ("pillow",),
    "cv2": ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
    "sklearn": ("scikit-learn",),
    "skimage": ("scikit-image",),
    "yaml": ("pyyaml",),
}


def _plain(requirement: str) -> str:
    import re

    found = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


class _File:
    """One file of a pack."""

    def __init__(self, place: str, own: frozenset[str], offered: frozenset[str]) -> None:
        self._place = place
        self._own = own
        self._offered = offered
        self.findings: list[Finding] = []
        self.nodes: dict[str, str] = {}
        self.imported: dict[str, str] = {}
        self._of_host: dict[str, str] = {}  # names bound to the host's modules -> the module
        self._from_offered: dict[str, str] = {}  # as above, of those that the host offers

    def read(self, tree: ast.Module) -> None:
        guarded = {
            id(inner)
            for one in ast.walk(tree) if isinstance(one, ast.Try)
            for part in one.body for inner in ast.walk(part)
        }  # fmt: skip
        never = {
            id(inner)
            for one in ast.walk(tree) if isinstance(one, ast.If) and _is_for_type_checkers(one.test)
            for part in one.body for inner in ast.walk(part)
        }  # fmt: skip
        for one in ast.walk(tree):
            for module, names in () if id(one) in never else _modules_of(one):
                self._import(module, names, one, id(one) in guarded)
        for one in _while_imported(tree):
            if isinstance(one, ast.Call) and (name := _root_of(one.func)) in self._from_offered:
                self._add(
                    "no", one, "",
                    f"calls {ast.unparse(one.func)} while it is imported, when the host's module "
                    f"{self._from_offered[name]} cannot be called: call it in a node, or in INPUT_TYPES",
                )  # fmt: skip
        for one in tree.body:
            if isinstance(one, ast.ClassDef) and _is_node(one):
                self._node(one)
        for one in ast.walk(tree):
            if isinstance(one, ast.Name) and one.id == "WEB_DIRECTORY" and isinstance(one.ctx, ast.Store):
                self._add(
                    "look", one, "", "WEB_DIRECTORY: scripts of the browser are served by the host; register them there"
                )

    def _add(self, level: str, one: ast.AST, node: str, text: str) -> None:
        finding = Finding(level, f"{self._place}:{getattr(one, 'lineno', 1)}", node, text)
        if finding not in self.findings:
            self.findings.append(finding)

    def _import(self, module: str, names: list[str], one: ast.AST, guarded: bool) -> None:
        top = module.partition(".")[0]
        if top in self._own:
            return
        if top == "comfy_api":
            self._import_interface(module, names, one, guarded)
            return
        if top in OF_HOST:
            if module in self._offered or any(name.startswith(module + ".") for name in self._offered):
                for name in names:
                    self._from_offered[name] = module
                missing = [] if module in self._offered else [n for n in names if f"{module}.{n}" not in self._offered]
                if isinstance(one, ast.Import) or not missing:
                    return
                names, module = missing, f"{module}.{missing[0]}"
            for name in names:
                self._of_host[name] = module
            level = "look" if guarded else "no"
            hint = "; it is tried only, so make sure that the pack does without" if guarded else ""
            self._add(level, one, "", f"imports {module}: {OF_HOST[top]}{hint}")
        elif top not in ("atoll_worker", "__future__"):
            self.imported.setdefault(top, f"{self._place}:{getattr(one, 'lineno', 1)}")

    def _import_interface(self, module: str, names: list[str], one: ast.AST, guarded: bool) -> None:
        """``comfy_api``: of it an isolated pack has a part."""
        known = ("comfy_api", *(f"comfy_api.{version}" for version in VERSIONS))
        wrong = [] if module in known else [module]
        if module in known[1:] and isinstance(one, ast.ImportFrom):
            wrong = [f"{module}.{alias.name}" for alias in one.names if alias.name not in (*NAMES, "*")]
        for name in wrong:
            self._add(
                "look" if guarded else "no", one, "",
                f"imports {name}: ComfyUI's own code; of comfy_api there are: {', '.join(NAMES)}",
            )  # fmt: skip

    def _node(self, cls: ast.ClassDef) -> None:
        before = len(self.findings)
        for one in ast.walk(cls):
            if isinstance(one, ast.Name) and one.id in self._of_host:
                self._add("no", one, cls.name, f"uses {one.id} of the host's module {self._of_host[one.id]}")
        for kind, line in _references(cls):
            self._add(
                "look", line, cls.name,
                f"takes {kind}, which is passed as a reference: its methods are called, its parts and data read, "
                "the latter as copies, and nothing of it is set",
            )  # fmt: skip
        levels = {finding.level for finding in self.findings[before:]}
        self.nodes[cls.name] = "no" if "no" in levels else "look" if levels else "yes"


def _while_imported(tree: ast.AST) -> Iterator[ast.AST]:
    """What is run when a file is imported: all but what functions consist of."""
    for one in ast.iter_child_nodes(tree):
        if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield one
            yield from _while_imported(one)


def _root_of(one: ast.AST) -> str:
    while isinstance(one, ast.Attribute):
        one = one.value
    return one.id if isinstance(one, ast.Name) else ""


def _modules_of(one: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """The modules that a statement imports, and the names that it binds."""
    if isinstance(one, ast.Import):
        for alias in one.names:
            yield alias.name, [alias.asname or alias.name.partition(".")[0]]
    elif isinstance(one, ast.ImportFrom) and not one.level and one.module:
        yield one.module, [alias.asname or alias.name for alias in one.names]
    elif isinstance(one, ast.Call) and one.args and ast.unparse(one.func) in _IMPORTERS:
        name = one.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith("."):
            yield name.value, []


_IMPORTERS = ("__import__", "import_module", "importlib.import_module")


def _is_for_type_checkers(test: ast.AST) -> bool:
    return isinstance(test, ast.Name | ast.Attribute) and ast.unparse(test).rpartition(".")[2] == "TYPE_CHECKING"


def _is_node(cls: ast.ClassDef) -> bool:
    names = {
        getattr(target, "id", None) for one in cls.body if isinstance(one, ast.Assign) for target in one.targets
    }  # fmt: skip
    functions = {one.name for one in cls.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
    return "INPUT_TYPES" in functions or {"FUNCTION", "RETURN_TYPES"} <= names or _is_schema_node(cls)


def _is_schema_node(cls: ast.ClassDef) -> bool:
    functions = {one.name for one in cls.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
    named = any(
        (isinstance(base, ast.Attribute) and base.attr in _KNOWN_BASES)
        or (isinstance(base, ast.Name) and base.id in _KNOWN_BASES)
        for base in cls.bases
    )
    return named or "define_schema" in functions


def _references(cls: ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    """Types of inputs that do not cross by value, as V1 (``("MODEL",)``) and V3 (``io.Model.Input``) write them."""
    for function in cls.body:
        name = getattr(function, "name", "")
        if name not in ("INPUT_TYPES", "define_schema", "DEFINE_SCHEMA"):
            continue
        for one in ast.walk(function):
            if isinstance(one, ast.Tuple) and one.elts and isinstance(one.elts[0], ast.Constant):
                kind = one.elts[0].value
            elif isinstance(one, ast.Attribute) and one.attr == "Input" and isinstance(one.value, ast.Attribute):
                kind = one.value.attr.upper()
            else:
                continue
            if isinstance(kind, str) and kind.isupper() and kind not in _BY_VALUE:
                yield kind, one
