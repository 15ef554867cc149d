# SPDX-License-Identifier: Apache-2.0
"""A typed client of a service: a module through which editors and type checkers know the service's functions.

Written from the service's text alone (``exposed``), so that neither its environment nor a worker is needed. At run time
the module is a subclass of ``atoll.Service`` and nothing more: what it says of the functions stands under
``TYPE_CHECKING``. The same source gives the same text, whatever it is called from and on any day.

What does not belong here: how annotations are carried over (``annotations``).
"""

from __future__ import annotations

import ast
import os
import textwrap

from ..errors import ManifestError
from ..manifest import load_spec
from .annotations import Translator
from .exposed import Exposed, ServiceText, read_service
from .service import Service

# Names that the generated module uses itself, or has under TYPE_CHECKING.
_TAKEN = ("TYPE_CHECKING", "atoll", "connect", "functools", "os", "_NoSuchFunction", "_P", "_R", "_SOURCE", "_remote")

_WIDTH = 120

# No linter and no formatter changes what --check compares.
_FIRST_LINES = "# ruff: noqa\n# fmt: off\n"


def client_file(source: str) -> str:
    """Where a service's client is written if nothing else is said: beside its file or ``service.yaml``, and in this
    folder if it is a module.

    Raises:
        ManifestError: the source is wrong.
    """
    spec = load_spec(source)
    file, _ = _split(spec.entry)
    name = os.path.basename(file)[: -len(".py")] if file.endswith(".py") else file.rpartition(".")[2]
    if spec.folder is not None and not _split(source)[0].endswith(".py"):
        name = spec.name  # of a folder: there, service.py is what the file is called in every one
    return os.path.join(spec.folder or os.getcwd(), f"{_identifier(name)}_client.py")


def is_client(text: str) -> bool:
    """Whether a file holds what ``client_module`` wrote, for whatever service, so that it may be written anew."""
    return text.startswith(f'{_FIRST_LINES}"""A typed client of the service ')


def client_module(source: str, output: str) -> str:
    """The text of a module with a typed client of a service.

    Args:
        source: as ``atoll.Service`` takes it.
        output: the file that the text is for: it names the source by its place relative to itself.

    Raises:
        ManifestError: the source is wrong, cannot be read, or exposes nothing.
    """
    spec = load_spec(source)
    _, chosen = _split(spec.entry)
    text = read_service(spec.entry)
    class_name = _class_name(chosen or spec.name)
    reachable = [one for one in text.functions if _is_attribute(one.name)]
    taken = {*_TAKEN, class_name, *(one.name for one in reachable)}
    translator = Translator(text.names, taken)
    methods = [_method(one, text, translator) for one in reachable]
    remarks = [
        f'# {one.name!r} is no name that an attribute can have here: call("{one.name}", ...)'
        for one in text.functions
        if one not in reachable
    ]
    remarks += [f"# What it has from {base} is not here: that is in another file." for base in text.unseen]
    if translator.unknown:
        names = ", ".join(sorted(" ".join(name.split()) for name in translator.unknown))
        remarks += textwrap.wrap(
            f"Any stands for what only the worker knows: {names}.",
            _WIDTH - 4, initial_indent="# ", subsequent_indent="# ", break_long_words=False,
        )  # fmt: skip
    remote = [
        translator.named("collections.abc", "Callable"),
        translator.named("typing", "Any"),
        translator.named("typing", "Concatenate"),
    ]
    callable_, any_, concatenate = remote
    param_spec, type_var = translator.named("typing", "ParamSpec"), translator.named("typing", "TypeVar")
    place, is_path = _place(source, output)
    command = f"atoll stubs {place}" if is_path else f"atoll stubs {source}"
    lines = [
        f'"""A typed client of the service {spec.name}. Written by `{command}`: change that, and run it again."""',
        "",
        "from __future__ import annotations",
        "",
        "import functools",
        *(["import os"] if is_path else []),
        "from typing import TYPE_CHECKING",
        "",
        "import atoll",
        "",
        "if TYPE_CHECKING:",
        *(f"    {line}" for line in translator.import_lines()),
        "",
        f'    _P = {param_spec}("_P")',
        f'    _R = {type_var}("_R")',
        "",
        "    class _NoSuchFunction:",
        '        """What a function that the service does not have would take."""',
        "",
        f"    def _remote(function: {callable_}[{concatenate}[{any_}, _P], _R]) -> atoll.RemoteFunction[_P, _R]: ...",
        "",
    ]
    for definition in translator.typed_dicts.values():
        lines += [*(f"    {line}" for line in definition.splitlines()), ""]
    lines += [
        "",
        f"class {class_name}(atoll.Service):",
        *_docstring(text.doc or f"The service {spec.name}.", "    "),
        "",
        *(f"    {line}" for line in remarks),
        *([""] if remarks else []),
        "    if TYPE_CHECKING:",
        "",
        f"        def __getattr__(self, name: str) -> atoll.RemoteFunction[[_NoSuchFunction], {any_}]: ...",
    ]
    for method in methods:
        lines += ["", *method]
    if is_path:
        parts = "".join(f", {part!r}" for part in place.split("/")).replace("'", '"')
        lines += ["", "", f"_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)){parts})"]
    else:
        lines += ["", "", f"_SOURCE = {_quoted(source)}"]
    lines += [
        "",
        "# Takes the options of atoll.Service.",
        f"connect = functools.partial({class_name}, _SOURCE)",
    ]
    return _FIRST_LINES + "\n".join(lines) + "\n"


def _method(one: Exposed, text: ServiceText, translator: Translator) -> list[str]:
    node = one.node
    result = (
        f"{_stream(translator)}[{translator.streamed(node.returns)}]"
        if _is_generator(node)
        else translator.of(node.returns)
    )
    parameters = _parameters(node, translator, skip_first=one.is_method)
    indent = " " * 8
    head = f"{indent}def {one.name}({', '.join(parameters)}) -> {result}:"
    if len(head) > _WIDTH:
        head = "\n".join(
            [f"{indent}def {one.name}(", *(f"{indent}    {part}," for part in parameters), f"{indent}) -> {result}:"]
        )
    doc = ast.get_docstring(node)
    body = _docstring(doc, indent + "    ") if doc else []
    return [f"{indent}@_remote", *head.split("\n"), *body, f"{indent}    ..."]


def _stream(translator: Translator) -> str:
    import sys

    return (
        "atoll.Stream" if "Stream" in sys.modules["atoll"].__all__ else translator.named("collections.abc", "Iterator")
    )


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, translator: Translator, *, skip_first: bool) -> list[str]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    without_default = len(positional) - len(arguments.defaults)
    defaults = [None] * without_default + list(arguments.defaults)
    # The object is what _remote takes away; "/" after it, since a parameter may be called self too.
    own = [one.arg for one in _all_arguments(arguments)[1 if skip_first else 0 :]]
    parts = ["_self" if "self" in own else "self", "/"]
    only_positional = len(arguments.posonlyargs)
    pairs = list(zip(positional, defaults, strict=True))
    if skip_first and pairs:
        pairs, only_positional = pairs[1:], max(0, only_positional - 1)
    for index, (argument, default) in enumerate(pairs):
        if index + 1 == only_positional:
            parts.remove("/")
        parts.append(_parameter(argument, default, translator))
        if index + 1 == only_positional:
            parts.append("/")
    if arguments.vararg is not None:
        parts.append("*" + _parameter(arguments.vararg, None, translator))
    elif arguments.kwonlyargs:
        parts.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parts.append(_parameter(argument, default, translator))
    if arguments.kwarg is not None:
        parts.append("**" + _parameter(arguments.kwarg, None, translator))
    return parts


def _all_arguments(arguments: ast.arguments) -> list[ast.arg]:
    return [
        *arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs,
        *filter(None, (arguments.vararg, arguments.kwarg)),
    ]  # fmt: skip


def _parameter(argument: ast.arg, default: ast.expr | None, translator: Translator) -> str:
    hint = translator.of(argument.annotation)
    if default is None:
        return f"{argument.arg}: {hint}"
    if isinstance(default, ast.Constant) and default.value is None:
        any_type = translator.named("typing", "Any")
        if "None" not in hint.split(" | ") and hint not in (any_type, "object"):
            hint += " | None"  # as it was meant
        return f"{argument.arg}: {hint} = None"
    return f"{argument.arg}: {hint} = {_default(default, argument.annotation)}"


def _default(default: ast.expr, annotation: ast.expr | None) -> str:
    """As it is written, where that surely is of the parameter's type; type checkers take ``...`` for any."""
    if isinstance(default, ast.UnaryOp) and isinstance(default.op, ast.USub):
        return f"-{inner}" if (inner := _default(default.operand, annotation)) != "..." else inner
    if not isinstance(default, ast.Constant) or not isinstance(default.value, bool | int | float | str | bytes):
        return "..."
    named = annotation.id if isinstance(annotation, ast.Name) else "" if annotation is not None else "Any"
    same = named in ("Any", type(default.value).__name__) or (named, type(default.value)) == ("float", int)
    written = ast.unparse(default)
    return written if same and len(written) <= 40 else "..."


def _is_generator(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it yields; what functions inside it do does not count."""
    queue: list[ast.AST] = list(node.body)
    while queue:
        one = queue.pop()
        if isinstance(one, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            queue += ast.iter_child_nodes(one)
    return False


def _docstring(text: str, indent: str) -> list[str]:
    text = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    if text.endswith('"'):
        text = text[:-1] + '\\"'
    first, *rest = text.splitlines() or [""]
    if not rest:
        return [f'{indent}"""{first}"""']
    return [f'{indent}"""{first}', *(f"{indent}{line}".rstrip() for line in rest), f'{indent}"""']


def _is_attribute(name: str) -> bool:
    import keyword

    return name.isidentifier() and not keyword.iskeyword(name) and not hasattr(Service, name)


def _place(source: str, output: str) -> tuple[str, bool]:
    """How the generated module names the source: relative to itself, with ``/``; or as it is, a module."""
    place, chosen = _split(source)
    path = os.path.abspath(os.path.expanduser(place))
    if not place.endswith((".py", ".yaml", ".yml")) and not os.path.isdir(path):
        return source, False
    relative = os.path.relpath(path, os.path.dirname(os.path.abspath(output))).replace(os.sep, "/")
    return (f"{relative}:{chosen}" if chosen else relative), True


def _split(text: str) -> tuple[str, str]:
    place, colon, chosen = text.rpartition(":")
    return (place, chosen) if colon and place and chosen.isidentifier() else (text, "")


def _identifier(name: str) -> str:
    found = "".join(letter if letter.isalnum() else "_" for letter in name)
    if not found.isidentifier():
        found = f"_{found}"
    if not found.isidentifier():
        raise ManifestError(f"service {name!r}: no name of a Python module can be made of that; give it one with -o")
    return found


def _class_name(name: str) -> str:
    parts = _identifier(name).split("_")
    return "".join(part[:1].upper() + part[1:] for part in parts) or "Client"


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
