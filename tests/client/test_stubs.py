# SPDX-License-Identifier: Apache-2.0
"""Typed clients of services: what is written of a service's text, and that it works at run time."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import atoll
from atoll.client.stubs import client_file, client_module

Write = Callable[[str, str], Path]


def text_of(file: Path | str) -> str:
    """The client's text, which is a module's in any case."""
    text = client_module(str(file), client_file(str(file)))
    compile(text, "client.py", "exec")
    return text


def signatures(file: Path | str) -> dict[str, str]:
    """Function -> its parameters and result, as the client has them."""
    found = {}
    for node in ast.walk(ast.parse(text_of(file))):
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            result = "" if node.returns is None else ast.unparse(node.returns)
            found[node.name] = f"({ast.unparse(node.args)}) -> {result}"
    return found


def parameter(write: Write, annotation: str, before: str = "") -> str:
    """What an annotation becomes."""
    lines = [*before.splitlines(), "from atoll_worker import expose", "@expose", f"def f(x: {annotation}): pass"]
    found = signatures(write("service.py", "\n".join(lines)))["f"]
    return found.removeprefix("(self, /, x: ").removesuffix(") -> Any")


@pytest.mark.parametrize(
    ("before", "annotation", "expected"),
    [
        ("", "int", "int"),
        ("", "'int | None'", "int | None"),
        ("", "list", "list[Any]"),
        ("", "dict", "dict[Any, Any]"),
        ("", "tuple", "tuple[Any, ...]"),
        ("", "tuple[int, ...]", "tuple[int, ...]"),
        ("", "tuple[()]", "tuple[()]"),
        ("", "object", "object"),
        ("", "Missing", "Any"),
        ("", "3", "Any"),
        ("", "'not a type'", "Any"),
        ("", "print", "Any"),
        ("from typing import Optional, Union", "Optional[Union[int, str]]", "int | str | None"),
        ("from typing import Dict, List", "Dict[str, List]", "Dict[str, List[Any]]"),
        ("import typing as t", "t.Callable", "Callable[..., Any]"),
        ("import typing", "typing.Callable[[int], str]", "Callable[[int], str]"),
        ("from typing import Annotated", "Annotated[int, Missing]", "int"),
        ("from typing import Literal", "Literal['a', 2]", "Literal['a', 2]"),
        ("from typing import Literal\nfrom colours import Colour", "Literal[Colour.RED]", "Any"),
        ("from typing_extensions import Sequence", "Sequence[bytes]", "Sequence[bytes]"),
        ("from typing import Self", "Self", "Any"),
        ("from typing import TypeVar\nT = TypeVar('T')", "list[T]", "list[Any]"),
        ("import datetime", "datetime.datetime", "datetime"),
        ("import collections.abc", "collections.abc.Mapping[str, int]", "Mapping[str, int]"),
        ("from pathlib import Path as P", "P", "Path"),
        ("import torch", "torch.Tensor", "Any"),
        ("import torch", "list[torch.Tensor] | None", "list[Any] | None"),
        ("import torch", "torch.Tensor | None", "Any | None"),
        ("from .beside import Thing", "Thing", "Any"),
        ("class Own: pass", "Own", "Any"),
        ("class int: pass", "int", "Any"),
        ("Box = tuple[int, 'Edge']\nEdge = float | None", "Box", "tuple[int, float | None]"),
        ("Loop = list['Loop']", "Loop", "list[Any]"),
        ("import numpy as np", "np.ndarray", "NDArray[Any]"),
        ("import numpy as np", "np.float32", "float32"),
        ("import numpy as np", "np.floating", "floating[Any]"),
        ("import numpy as np", "np.no_such_thing", "Any"),
        ("from numpy.typing import NDArray", "NDArray[Missing]", "NDArray[Any]"),
        ("try:\n    import ujson as json\nexcept ImportError:\n    import json", "json.JSONDecoder", "Any"),
    ],
)
def test_annotations(before: str, annotation: str, expected: str, write: Write) -> None:
    assert parameter(write, annotation, before) == expected


def test_signatures_keep_their_form(write: Write) -> None:
    file = write(
        "forms.py",
        """\
        import atoll_worker as aw
        from collections.abc import AsyncIterator, Iterator

        @aw.expose
        def all_kinds(a: int, b: float = 1, /, c: str = "x", *rest: int, d: int = -3, e: bytes, **k: str) -> None: ...

        @aw.expose
        def defaults(a: int = None, b: str = NAME, c: float = "wrong", d=0.5, e: list = []) -> None: ...

        @aw.expose(name="renamed")
        async def waits(self: int) -> bytes: ...

        @aw.expose
        def bare(x): return 1

        @aw.expose
        def numbers(n: int) -> Iterator[int]:
            yield from range(n)

        @aw.expose
        async def later() -> AsyncIterator[str]:
            yield ""

        @aw.expose
        def not_a_generator() -> Iterator[int]:
            def inner(): yield 1
            return list(inner())

        def hidden(): pass

        def marked_below(): return 1
        aw.expose(marked_below)
        again = aw.expose(name="also_below")(hidden)
        """,
    )
    stream = "atoll.Stream" if "Stream" in atoll.__all__ else "Iterator"
    assert signatures(file) == {
        "all_kinds": "(self, a: int, b: float=1, /, c: str='x', *rest: int, d: int=-3, e: bytes, **k: str) -> None",
        "defaults": "(self, /, a: int | None=None, b: str=..., c: float=..., d: Any=0.5, e: list[Any]=...) -> None",
        "renamed": "(_self, /, self: int) -> bytes",
        "bare": "(self, /, x: Any) -> Any",
        "numbers": f"(self, /, n: int) -> {stream}[int]",
        "later": f"(self, /) -> {stream}[str]",
        "not_a_generator": "(self, /) -> Iterator[int]",
        "marked_below": "(self, /) -> Any",
        "also_below": "(self, /) -> Any",
    }


CLASSES = """\
from atoll_worker import Service, expose
from elsewhere import Mixin

class Base(Service):
    "The base."
    @expose
    def shared(self, x: int) -> int: ...
    @expose
    def overridden(self) -> int: ...
    @expose
    def replaced(self) -> int: ...

class Leaf(Base, Mixin):
    "The leaf."
    def overridden(self) -> int: ...
    @expose
    def replaced(self) -> str: ...
    @expose
    @staticmethod
    def fixed(x: int) -> int: ...
    @expose
    @classmethod
    def of_class(cls, x: int) -> int: ...

class NotAService:
    @expose
    def method(self): ...
"""


def test_classes_as_the_worker_takes_them(write: Write) -> None:
    file = write("classes.py", CLASSES)
    assert signatures(file) == {
        "shared": "(self, /, x: int) -> int",
        "replaced": "(self, /) -> str",
        "fixed": "(self, /, x: int) -> int",
        "of_class": "(self, /, x: int) -> int",
    }
    text = text_of(file)
    assert 'class Classes(atoll.Service):\n    """The leaf."""' in text
    assert "# What it has from elsewhere.Mixin is not here" in text
    assert list(signatures(f"{file}:Base")) == ["shared", "overridden", "replaced"]
    assert 'class Base(atoll.Service):\n    """The base."""' in text_of(f"{file}:Base")
    with pytest.raises(
        atoll.ManifestError, match=r"no Service class 'NotAService'; its services are: \['Base', 'Leaf'\]"
    ):
        text_of(f"{file}:NotAService")


def test_typed_dicts_are_carried_over(write: Write) -> None:
    file = write(
        "dicts.py",
        """\
        from typing import Required, TypedDict
        import torch
        from atoll_worker import expose

        class Place(TypedDict):
            x: int

        class Found(Place, total=False):
            label: Required[str]
            inner: "list[Found]"
            tensor: torch.Tensor

        class Dicts(TypedDict):
            clash: int

        @expose
        def find() -> list[Found]: ...
        @expose
        def clashes() -> Dicts: ...
        """,
    )
    text = text_of(file)
    assert (
        "    class Place(TypedDict):\n        x: int\n\n"
        "    class Found(Place, total=False):\n        label: Required[str]\n        inner: list[Found]\n"
        "        tensor: Any\n"
    ) in text
    assert "    class _Dicts(TypedDict):\n        clash: int\n" in text
    assert signatures(file) == {"find": "(self, /) -> list[Found]", "clashes": "(self, /) -> _Dicts"}
    assert "# Any stands for what only the worker knows: torch.Tensor." in text


def test_names_that_would_hide_others(write: Write) -> None:
    file = write(
        "hiding.py",
        """\
        from typing import Any
        from atoll_worker import expose
        @expose
        def list(n: int) -> "list[int]": ...
        @expose
        def Any(n: "dict") -> None: ...
        @expose
        def call(n: int) -> int: ...
        @expose(name="group.member")
        def dotted(n: int) -> int: ...
        """,
    )
    assert signatures(file) == {
        "list": "(self, /, n: int) -> _list[int]",
        "Any": "(self, /, n: dict[_Any, _Any]) -> None",
    }
    text = text_of(file)
    assert "from builtins import list as _list" in text
    assert "from typing import Any as _Any, " in text
    assert """# 'call' is no name that an attribute can have here: call("call", ...)""" in text
    assert """# 'group.member' is no name""" in text


def test_docstrings_survive(write: Write) -> None:
    doc = r"""Says "hi".

    A backslash \\ and \"\"\"three\"\"\".

At the end \"quoted\""""
    file = write("spoken.py", f'from atoll_worker import expose\n@expose\ndef f():\n    """{doc}"""\n')
    (original,) = [one for one in ast.walk(ast.parse(file.read_text())) if isinstance(one, ast.FunctionDef)]
    (copy,) = [
        one for one in ast.walk(ast.parse(text_of(file))) if isinstance(one, ast.FunctionDef) and one.name == "f"
    ]
    assert ast.get_docstring(copy) == ast.get_docstring(original)
    assert "three" in (ast.get_docstring(copy) or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(): pass", "exposes nothing that can be seen in its text"),
        ("def f(:", "is no Python 3"),
        ("from atoll_worker import expose\n@expose\ndef f(): ...\n@expose(name='f')\ndef g(): ...", "exposed as 'f'"),
    ],
)
def test_what_cannot_be_read(text: str, message: str, write: Write) -> None:
    with pytest.raises(atoll.ManifestError, match=message):
        text_of(write("wrong.py", text))


def test_a_module_that_is_not_here() -> None:
    with pytest.raises(atoll.ManifestError, match=r"module 'no\.such\.module'"):
        client_module("no.such.module", "client.py")


def test_nothing_is_run(write: Write) -> None:
    file = write("dangerous.py", "raise SystemExit\nfrom atoll_worker import expose\n@expose\ndef f(): ...\n")
    assert list(signatures(file)) == ["f"]


def test_the_text_does_not_depend_on_where_it_is_written_from(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("services/vision.py", "from atoll_worker import expose\n@expose\ndef f(): ...\n")
    output = str(tmp_path / "clients" / "vision.py")
    absolute = client_module(str(file), output)
    monkeypatch.chdir(tmp_path)
    assert client_module("services/vision.py", "clients/vision.py") == absolute
    assert 'os.path.abspath(__file__)), "..", "services", "vision.py")' in absolute


# -- at run time -------------------------------------------------------------------------------------------------------


@pytest.fixture
def load() -> Iterator[Callable[[Path, str], ModuleType]]:
    """Write the client of a service, and import it."""

    def load_client(output: Path, source: str) -> ModuleType:
        output.write_text(client_module(source, str(output)))
        spec = importlib.util.spec_from_file_location(output.stem, output)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    before = set(sys.modules)
    yield load_client
    assert "numpy" not in set(sys.modules) - before


SERVICE = """\
from typing import TypedDict
import numpy as np
from atoll_worker import Service, expose

class Found(TypedDict):
    label: str

class Finder(Service):
    @expose
    def find(self, label: str, times: int = 2) -> list[Found]:
        return [{"label": label}] * times

class Other(Finder):
    @expose
    def other(self) -> int:
        return 1
"""


@pytest.mark.parametrize("kind", ["file", "class", "folder"])
def test_the_client_works(kind: str, write: Write, tmp_path: Path, load: Callable[[Path, str], ModuleType]) -> None:
    file = write("finder/service.py", SERVICE)
    source = {"file": str(file), "class": f"{file}:Finder", "folder": str(file.parent)}[kind]
    if kind == "folder":
        write("finder/service.yaml", "name: finder-service\n")
    assert client_file(source) == str(
        file.parent / ("finder_service_client.py" if kind == "folder" else "service_client.py")
    )
    module: Any = load(tmp_path / "client.py", source)
    with module.connect(timeout=30) as service:
        assert isinstance(service, atoll.Service)
        assert type(service).__name__ == {"file": "Service", "class": "Finder", "folder": "FinderService"}[kind]
        assert service.find("a") == [{"label": "a"}] * 2
        assert service.find.submit("b", times=1).result() == [{"label": "b"}]
        if kind != "class":
            assert service.other() == 1
    with pytest.raises(TypeError, match="timeot"):
        module.connect(timeot=3)


def test_the_client_of_a_module(
    write: Write, tmp_path: Path, load: Callable[[Path, str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("package/__init__.py", "raise SystemExit('parents are not imported')")
    write("package/inner.py", SERVICE)
    monkeypatch.syspath_prepend(tmp_path)
    text = client_module("package.inner:Finder", str(tmp_path / "client.py"))
    assert '_SOURCE = "package.inner:Finder"' in text
    assert "def find(self" in text
    monkeypatch.chdir(tmp_path)
    assert client_file("package.inner") == str(tmp_path / "inner_client.py")
