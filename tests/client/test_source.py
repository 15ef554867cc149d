# SPDX-License-Identifier: Apache-2.0
"""A function's text: what cannot work in the worker is refused at decoration, by name; all else works."""

# ruff: noqa: B007, F821, F842, RUF013, UP037 - the functions below are odd on purpose
# mypy: ignore-errors

from __future__ import annotations

import functools
import math
import os as operating_system
import traceback
from pathlib import Path

import pytest

import atoll

LIMIT = 10


def helper(x: int) -> int:
    return x + 1


class Helper:
    pass


def test_a_closure_variable() -> None:
    factor = 3
    with pytest.raises(atoll.FunctionSourceError, match=r"'factor' from the function around it"):

        @atoll.function
        def scale(x):
            return x * factor


def test_a_module_and_how_to_import_it() -> None:
    with pytest.raises(atoll.FunctionSourceError, match=r"'math' \(write `import math` inside"):

        @atoll.function
        def area(r):
            return math.pi * r**2


def test_a_module_under_another_name() -> None:
    with pytest.raises(atoll.FunctionSourceError, match=r"`import os as operating_system`"):

        @atoll.function
        def pid():
            return operating_system.getpid()


def test_a_function_a_class_and_a_constant_of_the_module() -> None:
    with pytest.raises(atoll.FunctionSourceError) as caught:

        @atoll.function
        def use(x):
            return helper(x), Helper(), LIMIT

    for words in ("'helper' (define or import it", "'Helper' (define or import it", "'LIMIT' (pass it as an argument)"):
        assert words in str(caught.value)


def test_an_unknown_name() -> None:
    with pytest.raises(atoll.FunctionSourceError, match=r"'nowhere' \(it is not defined here either\)"):

        @atoll.function
        def f():
            return nowhere


def test_a_name_in_a_nested_function_a_comprehension_and_a_class() -> None:
    with pytest.raises(atoll.FunctionSourceError) as caught:

        @atoll.function
        def f(xs):
            def inner():
                return LIMIT

            class Inner:
                base = Helper

            return [helper(x) for x in xs], inner, Inner

    for name in ("'LIMIT'", "'Helper'", "'helper'"):
        assert name in str(caught.value)


def test_a_name_in_a_default_value() -> None:
    with pytest.raises(atoll.FunctionSourceError, match="'LIMIT'"):

        @atoll.function
        def f(x=LIMIT):
            return x

    with pytest.raises(
        atoll.FunctionSourceError, match=r"'helper' \(the default value of 'key' is evaluated in the worker"
    ):

        @atoll.function
        def g(first, /, *, other=1, key=helper):
            return key

    with pytest.raises(atoll.FunctionSourceError) as caught:

        @atoll.function
        def h(r, x=math.pi):
            return x * math.e * LIMIT

    assert (
        "'math' (the default value of 'x' is evaluated in the worker; use a literal, or None and set it inside)"
        in str(caught.value)
    )
    assert "'LIMIT' (pass it as an argument)" in str(caught.value)


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def test_several_decorators() -> None:
    with pytest.raises(atoll.FunctionSourceError, match="'f' is wrapped by another decorator"):

        @atoll.function
        @decorated
        def f(x):
            return x

    with pytest.raises(atoll.FunctionSourceError, match=r"several decorators \(@functools.wraps\(helper\), @atoll"):

        @functools.wraps(helper)
        @atoll.function
        def g(x):
            return x

    with pytest.raises(atoll.FunctionSourceError, match="'h' is wrapped by another decorator"):

        @atoll.function
        @functools.cache
        def h(x):
            return x


@pytest.mark.parametrize("thing", [len, Helper, functools.partial(helper, 1), print, Helper(), 3])
def test_what_is_no_python_function(thing: object) -> None:
    with pytest.raises(atoll.FunctionSourceError, match="ships the text of a Python function"):
        atoll.function(thing)


def test_a_function_without_source() -> None:
    namespace: dict = {}
    exec("def made_up(x):\n    return x\nnameless = lambda x: x", namespace)
    with pytest.raises(atoll.FunctionSourceError, match="source of 'made_up' cannot be read"):
        atoll.function(namespace["made_up"])
    with pytest.raises(atoll.FunctionSourceError, match="source of a lambda cannot be read"):
        atoll.function(namespace["nameless"])


def test_a_file_that_changed_since_it_was_imported(tmp_path: Path) -> None:
    file = tmp_path / "changing.py"
    file.write_text("def f(x):\n    return x\n")
    namespace: dict = {"__name__": "changing"}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    file.write_text("\n\n# moved\ndef f(x):\n    return x\n")
    with pytest.raises(atoll.FunctionSourceError, match="was the file changed"):
        atoll.function(namespace["f"])


def test_lambdas() -> None:
    twice = atoll.function(lambda x: 2 * x)
    assert twice(4) == 8
    plus, times = atoll.function(lambda x, y: x + y), atoll.function(lambda x, y: x * y)
    assert (plus(3, 4), times(3, 4)) == (7, 12)
    nested = atoll.function(lambda xs: sorted(xs, key=lambda x: -x))
    assert nested([1, 3, 2]) == [3, 2, 1]
    spread = atoll.function(
        lambda x: (
            x + 1  # a comment
        )
    )
    assert spread(1) == 2
    with pytest.raises(atoll.FunctionSourceError, match="'math'"):
        atoll.function(lambda r: math.pi * r)


def test_lambdas_of_the_same_text() -> None:
    same = [atoll.function(lambda x: x), atoll.function(lambda y: y)]
    assert [f(5) for f in same] == [5, 5]
    assert same[1](y=6) == 6


def test_nested_functions_classes_comprehensions_and_inner_decorators() -> None:
    @atoll.function
    def f(xs):
        import functools

        count = 0

        def doubled(function):
            @functools.wraps(function)
            def inner(*args):
                nonlocal count
                count += 1
                return 2 * function(*args)

            return inner

        class Adder:
            step = 1

            @staticmethod
            @doubled
            def add(x):
                return x + Adder.step

        squares = {x: x * x for x in xs}
        return [Adder.add(x) for x in xs], squares, count, (last := xs[-1]), last, [y for x in [xs] for y in x]

    assert f([1, 2]) == ([4, 6], {1: 1, 2: 4}, 2, 2, 2, [1, 2])


def test_global_statement_import_and_exception_names() -> None:
    @atoll.function
    def f():
        global memory
        import math as m
        from os import path

        try:
            memory += 1
        except NameError as error:
            memory = 1
            text = str(error)
        with open("/dev/null") as null:
            assert null.read() == ""
        for item in [1]:
            pass
        match [1, 2]:
            case [one, *others]:
                pass
        return memory, m.floor(2.5), path.basename("/a/b"), text, item, one, others

    assert f() == (1, 2, "b", "name 'memory' is not defined", 1, 1, [2])


def test_annotations_may_name_what_does_not_exist_over_there() -> None:
    @atoll.function
    def f(x: Helper, *rest: Nowhere, y: dict[str, LIMIT] = None, **more: Unknown) -> "Also.Unknown":
        z: Nothing = x
        w: Nothing

        def inner(q: NotThere) -> NotThere:
            return q

        return inner(z)

    assert f(1) == 1


def test_an_indented_definition_keeps_its_strings_of_several_lines() -> None:
    if True:
        for _ in range(1):

            @atoll.function
            def f():
                text = """first
    second
        third
"""
                # a comment that is indented less
                return (
                    text,
                    """
    x""",
                )

    assert f() == f.local()


def test_a_tab_indented_and_a_one_line_definition(tmp_path: Path) -> None:
    file = tmp_path / "tabs.py"
    file.write_text(
        "import atoll\nif True:\n\t@atoll.function\n\tdef f(x):\n\t\tif x:\n\t\t\treturn 'yes'\n\t\treturn 'no'\n"
        "if True: g = atoll.function(lambda: 'one line')\n"
        "@atoll.function\ndef h(x): return x + 1\n"
    )
    namespace: dict = {"__name__": "tabs"}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    assert (namespace["f"](1), namespace["f"](0), namespace["g"](), namespace["h"](1)) == ("yes", "no", "one line", 2)


def test_options_over_several_lines_before_the_definition() -> None:
    @atoll.function(
        name="long",
        env_vars={
            "GREETING": "hello",
        },
    )
    def f():
        import os

        return os.environ["GREETING"]

    assert f() == "hello"


def test_non_ascii_text() -> None:
    @atoll.function
    def grüße(größe="Ω"):
        return f"{größe} ✓ \N{SNOWMAN}"

    assert grüße() == "Ω ✓ ☃"
    assert grüße(größe="ß") == "ß ✓ ☃"


def test_dunder_names_that_every_module_has() -> None:
    @atoll.function
    def f():
        return __name__, __file__

    assert f() == (__name__, __file__)


def test_coroutine_and_generator_functions() -> None:
    @atoll.function
    def numbers(count):
        yield from range(count)

    @atoll.function
    async def coroutine(x):
        import asyncio

        await asyncio.sleep(0)
        return x + 1

    @atoll.function
    async def both(count):
        for number in range(count):
            yield number

    assert isinstance(numbers(0), atoll.Stream)
    assert list(numbers(5)) == list(both(5)) == [0, 1, 2, 3, 4]
    assert list(atoll.function(lambda: (yield 7))()) == [7]
    assert coroutine(1) == 2
    assert list(coroutine.map([1, 2])) == [2, 3]

    @atoll.function
    def inside():
        import asyncio

        async def one():
            return 1

        return asyncio.run(one())

    assert inside() == 1


def test_a_method() -> None:
    with pytest.raises(atoll.FunctionSourceError, match=r"'C\.m' is a method: only its text would be shipped"):

        class C:
            @atoll.function
            def m(self):
                return self

    class D:
        twice = atoll.function(lambda x: 2 * x)

    assert D.twice(2) == 4


def test_tracebacks_show_the_original_files_lines() -> None:
    @atoll.function
    def fails(x):
        # one
        # two
        return 1 / x  # the line

    with pytest.raises(ZeroDivisionError) as caught:
        fails(0)
    with pytest.raises(ZeroDivisionError) as local:
        fails.local(0)
    theirs = traceback.extract_tb(caught.value.__traceback__)[-1]
    ours = traceback.extract_tb(local.value.__traceback__)[-1]
    assert (theirs.filename, theirs.lineno, theirs.name, theirs.line) == (
        ours.filename,
        ours.lineno,
        ours.name,
        ours.line,
    )
    assert "# the line" in caught.value.remote_traceback
    assert f'"{__file__}", line {ours.lineno}' in caught.value.remote_traceback
