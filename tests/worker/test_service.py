# SPDX-License-Identifier: Apache-2.0
"""What a module exposes: functions, services, their names, and what is an error at load time."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import pytest

from atoll_worker import Service, expose
from atoll_worker.service import FunctionTable, is_coroutine_function, is_generator_function, table_of_module


def table(source: str, class_name: str | None = None) -> FunctionTable:
    """The table of a module of this text."""
    module = ModuleType("sample")
    module.__file__ = "/somewhere/sample.py"
    exec("from atoll_worker import Service, expose\n" + textwrap.dedent(source), module.__dict__)
    return table_of_module(module, class_name)


def test_expose_marks_and_returns_the_function() -> None:
    """The decorator leaves a function what it is, with and without a name."""

    def plain(x: int) -> int:
        return x + 1

    assert expose(plain) is plain
    assert plain(1) == 2
    assert expose(name="other.name")(plain) is plain


@pytest.mark.parametrize("name", ["_hidden", "with space", "a..b", "1st", "a.", "a-b"])
def test_names_that_cannot_be_exposed(name: str) -> None:
    """Private names, and what is no dotted identifier."""
    with pytest.raises(TypeError, match="cannot be an exposed name"):
        expose(name=name)(lambda: None)


def test_what_expose_refuses() -> None:
    """Classes, values, lambdas without a name, and builtins that take no mark."""
    for thing in (int, 5, "text", Service):
        with pytest.raises(TypeError, match="marks functions and methods"):
            expose(thing)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="'<lambda>' cannot be an exposed name"):
        expose(lambda: None)
    with pytest.raises(TypeError, match="write a function around it"):
        expose(len)


def test_expose_takes_functions_of_every_kind() -> None:
    """Coroutine functions are run to their end and generator functions of both kinds give streams, also as methods."""

    def plain() -> None: ...

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def both() -> AsyncIterator[int]:
        yield 1

    for function, is_coroutine, is_generator in (
        (plain, False, False),
        (coroutine, True, False),
        (generator, False, True),
        (both, False, True),
    ):
        assert expose(function) is function
        assert (is_coroutine_function(function), is_generator_function(function)) == (is_coroutine, is_generator)

        class Holder:
            method = expose(staticmethod(function))
            bound = function

        for taken in (Holder.method, Holder().bound):
            assert (is_coroutine_function(taken), is_generator_function(taken)) == (is_coroutine, is_generator)


def test_functions_of_a_module() -> None:
    """What is marked is there under its name, what is not is not, and what was imported does not count."""
    made = table("""
        from os.path import join
        @expose
        def one(): return 1
        @expose(name="deux")
        def two(): return 2
        def hidden(): return 3
        alias = one
    """)
    assert {name: function() for name, function in made.functions.items()} == {"one": 1, "deux": 2}
    assert made.services == []


def test_an_imported_function_does_not_count() -> None:
    """A function that another module exposed is not exposed by who imports it."""
    other = ModuleType("other")
    exec("from atoll_worker import expose\n@expose\ndef theirs(): ...", other.__dict__)
    module = ModuleType("sample")
    module.__dict__.update(theirs=other.theirs, Service=Service)
    with pytest.raises(ValueError, match="sample exposes nothing"):
        table_of_module(module, None)


def test_a_decorated_function() -> None:
    """functools.wraps hands the mark on to the wrapper, which is then what is called."""
    made = table("""
        import functools
        def doubled(function):
            @functools.wraps(function)
            def wrapper(*args): return 2 * function(*args)
            return wrapper
        @doubled
        @expose
        def one(): return 1
    """)
    assert made.functions["one"]() == 2


def test_methods_of_a_service() -> None:
    """Plain, static and class methods, an alias of one, and a name of its own; state is shared."""
    made = table("""
        class Counter(Service):
            start = 5
            def setup(self): self.value = self.start
            @expose
            def count(self): self.value += 1; return self.value
            again = count
            @expose
            @staticmethod
            def fixed(): return "static"
            @staticmethod
            @expose
            def also_fixed(): return "static too"
            @expose
            @classmethod
            def begin(cls): return cls.start
            @expose(name="counter.value")
            def now(self): return self.value
            def hidden(self): ...
    """)
    made.set_up()
    functions = made.functions
    assert sorted(functions) == ["also_fixed", "begin", "count", "counter.value", "fixed"]
    assert [functions["count"](), functions["count"](), functions["counter.value"]()] == [6, 7, 7]
    assert (functions["fixed"](), functions["also_fixed"](), functions["begin"]()) == ("static", "static too", 5)


INHERITING = """
    class Base(Service):
        @expose
        def shared(self): return "base"
        @expose
        def changed(self): return "base"
    class Derived(Base):
        @expose
        def changed(self): return "derived"
"""


def test_inherited_methods() -> None:
    """A derived service has what its base exposes, and its own in place; a base is made only where it is chosen."""
    made = table(INHERITING, "Derived")
    assert {name: function() for name, function in made.functions.items()} == {"shared": "base", "changed": "derived"}
    assert table(INHERITING, "Base").functions["changed"]() == "base"
    only_leaf = table(INHERITING + "    alias = Derived\n")
    assert [type(service).__name__ for service in only_leaf.services] == ["Derived"]
    assert only_leaf.functions["changed"]() == "derived"
    reversed_order = table("""
        class B(Service):
            @expose
            def f(self): return "f"
        class A(B):
            @expose
            def g(self): return "g"
    """)
    assert sorted(reversed_order.functions) == ["f", "g"]


def test_two_leaves_of_one_base() -> None:
    """Both expose what the base does: one must be chosen."""
    source = INHERITING + "    class Other(Base): ...\n"
    with pytest.raises(ValueError, match=r"two functions are exposed as '\w+'.*choose one class"):
        table(source)
    assert table(source, "Other").functions["changed"]() == "base"


def test_a_name_taken_twice() -> None:
    """Two functions of one name are named, with both places."""
    with pytest.raises(ValueError, match=r"exposed as 'same': sample\.one and sample\.two; give one of them"):
        table("""
            @expose(name="same")
            def one(): ...
            @expose(name="same")
            def two(): ...
        """)


NO_SERVICE = "class No:\n    @expose\n    def f(self): ..."


@pytest.mark.parametrize("source", ["", "def f(): ...", "class Empty(Service): ...", NO_SERVICE])
def test_nothing_exposed(source: str) -> None:
    """An error that names the file and says what to do."""
    with pytest.raises(ValueError, match=r"/somewhere/sample\.py exposes nothing: mark functions"):
        table(source)


@pytest.mark.parametrize("name", ["Missing", "number", "Plain", "function"])
def test_a_class_that_is_no_service(name: str) -> None:
    """Choosing what is not there, no class or no Service names those that are."""
    with pytest.raises(ValueError, match=rf"no Service class '{name}'; its services are: \['One', 'Two'\]"):
        table(
            """
            number = 5
            class Plain: ...
            @expose
            def function(): ...
            class One(Service):
                @expose
                def f(self): ...
            class Two(Service): ...
            """,
            name,
        )


def test_functions_and_services_together() -> None:
    """All of a module's services and functions make one table; a chosen class stands alone."""
    source = """
        @expose
        def f(): ...
        class One(Service):
            @expose
            def g(self): ...
        class Two(Service):
            @expose
            def h(self): ...
    """
    made = table(source)
    assert sorted(made.functions) == ["f", "g", "h"]
    assert [type(service).__name__ for service in made.services] == ["One", "Two"]
    assert sorted(table(source, "Two").functions) == ["h"]


class Recorder(Service):
    said: list[str]

    def setup(self) -> None:
        self.said.append(f"setup {self.name}")

    def teardown(self) -> None:
        self.said.append(f"teardown {self.name}")
        if self.name == "b":
            raise SystemExit("in teardown")

    def __init__(self, name: str = "") -> None:
        self.name = name


def test_setup_in_order_teardown_in_reverse(capsys: pytest.CaptureFixture[str]) -> None:
    """Every teardown runs, also after one that raised, whose traceback goes to stderr."""
    said: list[str] = []
    Recorder.said = said
    made = FunctionTable()
    for name in "abc":
        made.add_service(functools.partial(Recorder, name))
    assert said == []
    made.set_up()
    made.tear_down()
    assert said == ["setup a", "setup b", "setup c", "teardown c", "teardown b", "teardown a"]
    assert "in teardown" in capsys.readouterr().err


def test_the_base_class_does_nothing() -> None:
    """setup and teardown may be left out."""
    service: Any = Service()
    assert service.setup() is None
    assert service.teardown() is None


def test_describe() -> None:
    """Every function with its signature, docstring and schema, sorted by name, as values that can cross."""
    from atoll_worker.values import Encoder

    made = table('''
        @expose
        def zoom(image, factor: float = 2.0) -> bytes:
            """Enlarge."""
        @expose
        def area(width: int, height: int): ...
    ''')
    seen = made.describe()
    assert list(seen) == ["area", "zoom"]
    assert seen["zoom"]["signature"] == "(image, factor: float = 2.0) -> bytes"
    assert seen["zoom"]["doc"] == "Enlarge."
    assert seen["area"]["parameters"]["required"] == ["width", "height"]
    Encoder().encode(seen)
