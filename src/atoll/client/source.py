# SPDX-License-Identifier: Apache-2.0
"""A function's source text, and whether it can run in another process: said at decoration, by name.

The text is shipped, never bytecode (which crashes across Python versions) and never a pickle. So a function may use
its parameters, what it imports and defines itself, and builtins; not the names around it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import symtable
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from atoll_worker.service import is_generator_function

from ..errors import FunctionSourceError

_ONLY_DECORATOR = (
    "only the function's own text is shipped, so @atoll.function must be the only decorator. Define others inside the "
    "function, or put the code into a file and use atoll.Service"
)


@dataclass(frozen=True)
class FunctionSource:
    """What a worker needs to make the function.

    Attributes:
        name: what it is called in ``source``.
        source: its text, complete for ``exec``, without decorators.
        filename: file the text is from.
        line: number of the text's first line in that file, from 1.
        module: name of the module the text is from.
        is_stream: it is a generator function.
    """

    name: str
    source: str
    filename: str
    line: int
    module: str
    is_stream: bool


def source_of(function: Callable[..., Any]) -> FunctionSource:
    """The source of a function.

    Raises:
        FunctionSourceError: it has none, or uses what will not exist in the worker.
    """
    if hasattr(function, "__wrapped__"):
        raise FunctionSourceError(
            f"{getattr(function, '__name__', repr(function))!r} is wrapped by another decorator; {_ONLY_DECORATOR}"
        )
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        raise FunctionSourceError(
            f"@atoll.function ships the text of a Python function, and {function!r} has none; "
            "write a function that calls it"
        )
    name = function.__name__
    _refuse_method(function, name)
    node, lines = _find_node(function, code, name)
    if isinstance(node, ast.Lambda):
        name = "lambda_"
        source, line = _lambda_text(node, name, lines), node.lineno
    else:
        _refuse_decorators(node)
        source, line = _definition_text(node, lines)
    _refuse_outside_names(function, node, source, name)
    module = function.__module__ or "__main__"
    return FunctionSource(name, source, code.co_filename, line, module, is_generator_function(function))


def _refuse_method(function: Callable[..., Any], name: str) -> None:
    around = function.__qualname__.rpartition(".")[0]
    if around and not around.endswith("<locals>") and name != "<lambda>":
        shown = function.__qualname__.rpartition("<locals>.")[2]
        raise FunctionSourceError(
            f"{shown!r} is a method: only its text would be shipped, without its object; define the function outside "
            "of the class, or put the class into a file as a Service and use atoll.Service"
        )


def _find_node(
    function: Callable[..., Any], code: CodeType, name: str
) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, list[str]]:
    """The node that defines the function, in the tree of its whole file, and the file's lines."""
    lines = linecache.getlines(code.co_filename, getattr(function, "__globals__", None))
    if not lines:
        try:
            lines, _ = inspect.findsource(code)
        except (OSError, TypeError):
            what = "a lambda" if name == "<lambda>" else repr(name)
            raise FunctionSourceError(
                f"the source of {what} cannot be read ({code.co_filename}); @atoll.function ships a function's text, "
                "so define it in a file or a notebook's cell"
            ) from None
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError as error:
        raise FunctionSourceError(
            f"the source of {name!r} in {code.co_filename} cannot be parsed any more ({error}); was the file changed?"
        ) from None
    found = [node for node in ast.walk(tree) if _defines(node, code, name)]
    if len(found) != 1:
        raise FunctionSourceError(
            f"the source of {name!r} is not found at line {code.co_firstlineno} of {code.co_filename}; "
            "was the file changed after it was imported?"
        )
    node = found[0]
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    return node, lines


def _defines(node: ast.AST, code: CodeType, name: str) -> bool:
    if isinstance(node, ast.Lambda):
        if name != "<lambda>" or node.lineno > code.co_firstlineno or node.end_lineno is None:
            return False
        # Several lambdas may stand on one line: the columns of the code tell which one it is.
        positions = [p for p in code.co_positions() if p[0] is not None and p[2] is not None and p[1] and p[3]]
        body = node.body
        starts = (body.lineno, body.col_offset)
        ends = (body.end_lineno or 0, body.end_col_offset or 0)
        inside = [p for p in positions if starts <= (p[0] or 0, p[2] or 0) and (p[1] or 0, p[3] or 0) <= ends]
        return node.lineno == code.co_firstlineno and len(inside) >= 1 and starts in [(p[0], p[2]) for p in inside]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        return node.name == name and first == code.co_firstlineno
    return False


def _definition_text(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> tuple[str, int]:
    """The text from ``def`` on, and its first line. Indented text is put under an ``if``, not dedented: that would
    change strings of several lines."""
    assert node.end_lineno is not None
    text = "".join(lines[node.lineno - 1 : node.end_lineno])
    if node.col_offset == 0:
        return text, node.lineno
    if node.lineno > 1:
        return "if 1:\n" + text, node.lineno - 1
    return "if 1: " + text.lstrip(), node.lineno


def _lambda_text(node: ast.Lambda, name: str, lines: list[str]) -> str:
    text = ast.get_source_segment("".join(lines), node)
    assert text is not None
    return f"{name} = ({text})\n"


def _refuse_decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    if len(node.decorator_list) > 1:
        names = ", ".join("@" + ast.unparse(one) for one in node.decorator_list)
        raise FunctionSourceError(f"{node.name!r} has several decorators ({names}); {_ONLY_DECORATOR}")


def _refuse_outside_names(
    function: Any, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, source: str, name: str
) -> None:
    # Its own name is there: what recurses finds itself.
    free = tuple(one for one in function.__code__.co_freevars if one != name)
    if free:
        raise FunctionSourceError(
            f"{function.__qualname__!r} uses {_listed(free)} from the function around it, which will not exist in "
            "the worker; pass it as an argument"
        )
    outside = sorted(set(_global_names(source, function.__code__.co_filename)) - {name} - set(dir(builtins)))
    outside = [one for one in outside if one not in ("__name__", "__file__", "__builtins__", "__doc__")]
    if outside:
        reasons = []
        in_defaults = _names_in_defaults(node.args)
        for one in outside:
            value = function.__globals__.get(one)
            if one in in_defaults:
                reasons.append(
                    f"{one!r} (the default value of {in_defaults[one]!r} is evaluated in the worker; use a literal, or "
                    "None and set it inside)"
                )
            elif inspect.ismodule(value):
                hint = f"import {value.__name__}" + (f" as {one}" if value.__name__ != one else "")
                reasons.append(f"{one!r} (write `{hint}` inside the function)")
            elif one in function.__globals__ and (inspect.isclass(value) or inspect.isroutine(value)):
                reasons.append(f"{one!r} (define or import it inside the function)")
            elif one in function.__globals__:
                reasons.append(f"{one!r} (pass it as an argument)")
            else:
                reasons.append(f"{one!r} (it is not defined here either)")
        raise FunctionSourceError(
            f"{function.__qualname__!r} uses module-level names that will not exist in the worker, where only the "
            f"function's own text runs: {', '.join(reasons)}"
        )


def _names_in_defaults(arguments: ast.arguments) -> dict[str, str]:
    """The names that default values use, each with the parameter that it is for."""
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [
        *zip(reversed(positional), reversed(arguments.defaults), strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {
        part.id: parameter.arg
        for parameter, default in pairs
        if default is not None
        for part in ast.walk(default)
        if isinstance(part, ast.Name)
    }


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)


def _global_names(source: str, filename: str) -> Iterator[str]:
    """Names that the text reads from the module around it. Annotations do not count: they are not evaluated."""
    tree = _without_annotations(ast.parse(source))
    top = symtable.symtable(ast.unparse(tree), filename, "exec")
    assigned = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()}
    tables = list(top.get_children())
    # What stands outside of the function's body is evaluated there too: defaults.
    yield from (
        symbol.get_name()
        for symbol in top.get_symbols()
        if symbol.is_referenced() and symbol.get_name() not in assigned
    )
    declared: set[str] = set()
    used: set[str] = set()
    while tables:
        table = tables.pop()
        tables.extend(table.get_children())
        for symbol in table.get_symbols():
            if symbol.is_global() and symbol.is_assigned():
                declared.add(symbol.get_name())  # `global x; x = ...` makes it exist over there
            elif symbol.is_global() and symbol.is_referenced():
                used.add(symbol.get_name())
    yield from used - declared


class _AnnotationRemover(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Constant(value=None)
        return node


def _without_annotations(tree: ast.Module) -> ast.Module:
    _AnnotationRemover().visit(tree)
    return ast.fix_missing_locations(tree)
