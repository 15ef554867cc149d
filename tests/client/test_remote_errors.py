# SPDX-License-Identifier: Apache-2.0
"""What a function raises is raised here: as its own class, with its message, chain, notes and the worker's lines."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import atoll

Write = Callable[[str, str], Path]


def raised(statement: str, prelude: str = "") -> BaseException:
    """What a worker's function raises that runs ``statement``."""

    @atoll.function
    def run(prelude: str, statement: str) -> None:
        names: dict[str, object] = {"__name__": "made"}
        exec(prelude, names)
        exec(statement, names)

    with pytest.raises(atoll.RemoteError) as caught:
        run(prelude, statement)
    pid = run.pid
    assert pid is not None, "an exception must not end the worker"
    assert caught.value.pid == pid
    assert caught.value.service == "run"
    return caught.value


@pytest.mark.parametrize(
    "cls",
    [ValueError, TypeError, LookupError, KeyError, IndexError, RuntimeError, ArithmeticError, ZeroDivisionError,
     OSError, FileNotFoundError, NotImplementedError, AttributeError, NameError, AssertionError, EOFError, MemoryError,
     RecursionError, TimeoutError, ConnectionResetError, UserWarning, BufferError],
)  # fmt: skip
def test_builtins_are_raised_as_themselves(cls: type[Exception]) -> None:
    error = raised(f"raise {cls.__name__}('the message')")
    assert isinstance(error, cls)
    assert isinstance(error, atoll.RemoteError)
    assert type(error).__name__ == cls.__name__
    assert str(error) == str(cls("the message"))
    assert error.args == ("the message",)
    assert error.type_name == cls.__name__


def test_what_the_interpreter_itself_raises() -> None:
    error = raised("{}['missing']")
    assert isinstance(error, KeyError)
    assert str(error) == "'missing'"
    assert error.args == ("missing",)
    assert isinstance(raised("[][3]"), IndexError)
    assert isinstance(raised("1 / 0"), ZeroDivisionError)
    assert isinstance(raised("(lambda f: f(f))(lambda f: f(f))"), RecursionError)


def test_os_errors_keep_their_parts() -> None:
    error = raised("open('/no/such/file')")
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.strerror, error.filename) == (2, "No such file or directory", "/no/such/file")
    assert str(error) == "[Errno 2] No such file or directory: '/no/such/file'"
    two = raised("import os; os.rename('/no/such/a', '/no/such/b')")
    assert isinstance(two, FileNotFoundError)
    assert two.filename2 == "/no/such/b"


def test_unicode_errors_keep_their_parts() -> None:
    error = raised("b'ab\\xff'.decode('utf-8')")
    assert isinstance(error, UnicodeDecodeError)
    assert (error.encoding, error.object, error.start, error.end) == ("utf-8", b"ab\xff", 2, 3)
    assert "invalid start byte" in str(error)


def test_a_syntax_error_keeps_its_place() -> None:
    error = raised("compile('x = (', 'some.py', 'exec')")
    assert isinstance(error, SyntaxError)
    with pytest.raises(SyntaxError) as local:
        compile("x = (", "some.py", "exec")
    for name in ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"):
        assert getattr(error, name) == getattr(local.value, name), name
    assert "was never closed" in str(error)
    assert "was never closed" in "".join(traceback.format_exception(error))


def test_import_errors_keep_their_name() -> None:
    error = raised("import surely_not_installed")
    assert isinstance(error, ModuleNotFoundError)
    assert str(error) == "No module named 'surely_not_installed'"
    assert error.name == "surely_not_installed"
    missing = raised("nowhere")
    assert isinstance(missing, NameError)
    assert missing.name == "nowhere"


def test_an_exception_group_keeps_its_members() -> None:
    error = raised("raise ExceptionGroup('several', [ValueError('a'), ExceptionGroup('in', [KeyError('b')])])")
    assert isinstance(error, ExceptionGroup)
    assert error.message == "several"
    first, second = error.exceptions
    assert isinstance(first, ValueError)
    assert isinstance(second, ExceptionGroup)
    assert isinstance(second.exceptions[0], KeyError)
    with pytest.raises(ExceptionGroup):
        _split(error)
    matched, rest = error.split(ValueError)
    assert matched is not None
    assert rest is not None


def _split(error: BaseException) -> None:
    try:
        raise error
    except* ValueError:
        pass  # the other is raised again


def test_a_custom_class_is_caught_as_its_builtin_ancestor() -> None:
    error = raised("raise Special('x', 3)", "class Special(LookupError): pass")
    assert isinstance(error, LookupError)
    assert type(error).__name__ == "Special"
    assert error.type_name == "made.Special"  # type: ignore[attr-defined]
    assert error.args == ("x", 3)
    assert str(error) == "('x', 3)"
    plain = raised("raise Plain('y')", "class Plain(Exception): pass")
    assert type(plain).__mro__[1:3] == (atoll.RemoteError, atoll.AtollError)


class Overdrawn(Exception):
    """Registered on both sides, each its own."""

    def __init__(self, balance: int, wanted: int) -> None:
        super().__init__(f"{wanted} of {balance}")
        self.balance = balance
        self.wanted = wanted


def test_a_registered_class_is_raised_as_itself(write: Write) -> None:
    atoll.register(Overdrawn)
    file = write(
        "bank.py",
        """\
        from atoll_worker import expose, register

        @register
        class Overdrawn(Exception):
            def __init__(self, balance, wanted):
                super().__init__(f"{wanted} of {balance}")
                self.balance = balance
                self.wanted = wanted

        @expose
        def withdraw(wanted):
            raise Overdrawn(10, wanted)
        """,
    )
    with atoll.Service(file) as bank:
        with pytest.raises(Overdrawn, match=r"^50 of 10$") as caught:
            bank.withdraw(50)
        assert isinstance(caught.value, atoll.RemoteError)
        assert (caught.value.balance, caught.value.wanted) == (10, 50)


STRANGE = {
    "an __init__ of its own": "class S(Exception):\n def __init__(self, *, a, b): self.a = a; self.b = b",
    "a __str__ that raises": "class S(Exception):\n def __init__(self, *, a, b): pass\n def __str__(self): 1 / 0",
    "a __repr__ that raises": "class S(Exception):\n def __init__(self, *, a, b): pass\n def __repr__(self): 1 / 0",
    "a __str__ that returns no text": "class S(Exception):\n def __init__(self, *, a, b): pass\n"
    " def __str__(self): return 3",
    "args that cannot cross": "import threading\nclass S(ValueError):\n"
    " def __init__(self, *, a, b): super().__init__(threading.Lock())",
    "a state that cannot cross": "class S(ValueError):\n def __init__(self, *, a, b): self.f = lambda: 1; self.ok = a",
    "args that are no tuple any more": "class S(Exception):\n args = property(lambda self: 1 / 0)\n"
    " def __init__(self, *, a, b): pass",
    "a __getattribute__ that raises": "class S(Exception):\n def __init__(self, *, a, b): pass\n"
    " def __getattribute__(self, name): raise RuntimeError(name)",
    "an endless message": "class S(Exception):\n def __init__(self, *, a, b): super().__init__('x' * 10_000_000)",
    "a metaclass": "class M(type):\n __qualname__ = property(lambda cls: 1 / 0)\nclass S(Exception, metaclass=M):\n"
    " def __init__(self, *, a, b): pass",
    "surrogates": "class S(Exception):\n def __init__(self, *, a, b): super().__init__('\\udcff')",
    "a __new__ of its own": "class S(OSError):\n def __new__(cls, *, a, b): return super().__new__(cls)\n"
    " def __init__(self, *, a, b): self.a = a",
    "notes that are none": "class S(Exception):\n def __init__(self, *, a, b): self.__notes__ = 3",
    "a class of its own making": "class S(Exception):\n def __init__(self, *, a, b): pass\n"
    " @property\n def __class__(self): return int",
}


@pytest.mark.parametrize("what", STRANGE)
def test_strange_classes_break_nothing(what: str) -> None:
    error = raised("raise S(a=1, b=2)", STRANGE[what])
    assert isinstance(str(error), str)
    assert isinstance(repr(error), str)
    assert len(str(error)) < 100_000
    assert "".join(traceback.format_exception(error))
    assert pickle.loads(pickle.dumps(error))


def test_notes_survive() -> None:
    error = raised("error = ValueError('x'); error.add_note('first'); error.add_note('second'); raise error")
    assert error.__notes__ == ["first", "second"]
    assert "first\nsecond" in "".join(traceback.format_exception(error))


CHAINS = """
def cause():
    try:
        {}['inner']
    except KeyError as error:
        raise ValueError('outer') from error

def context():
    try:
        {}['inner']
    except KeyError:
        raise ValueError('outer')

def suppressed():
    try:
        {}['inner']
    except KeyError:
        raise ValueError('outer') from None
"""


def test_causes_and_contexts_survive() -> None:
    cause = raised("cause()", CHAINS)
    assert isinstance(cause.__cause__, KeyError)
    assert isinstance(cause.__cause__, atoll.RemoteError)
    assert "direct cause of the following exception" in "".join(traceback.format_exception(cause))
    context = raised("context()", CHAINS)
    assert context.__cause__ is None
    assert isinstance(context.__context__, KeyError)
    assert "During handling of the above exception" in "".join(traceback.format_exception(context))
    suppressed = raised("suppressed()", CHAINS)
    assert suppressed.__suppress_context__
    assert "inner" not in "".join(traceback.format_exception(suppressed))


def test_a_chain_that_is_a_ring_or_endless_ends() -> None:
    ring = raised("a = ValueError('a'); b = KeyError('b'); a.__context__ = b; b.__context__ = a; raise a")
    assert isinstance(ring, ValueError)
    deep = raised(
        "error = None\nfor n in range(500):\n new = ValueError(n)\n new.__cause__ = error\n error = new\nraise error"
    )
    assert isinstance(deep.__cause__, ValueError)


def test_the_printed_traceback_shows_the_workers_files_lines_and_text(write: Write) -> None:
    write("beside/deeper.py", "def divide(x):\n    return 1 / x  # in deeper\n")
    file = write(
        "beside/outer.py",
        """\
        from atoll_worker import expose
        import deeper

        @expose
        def f(x):
            return deeper.divide(x)  # in outer
        """,
    )
    with atoll.Service(file) as outer, pytest.raises(ZeroDivisionError) as caught:
        outer.f(0)
    printed = "".join(traceback.format_exception(caught.value))
    here = printed.index("outer.f(0)")
    outer_at = printed.index(f'File "{file}", line 6, in f\n    return deeper.divide(x)  # in outer')
    deeper_at = printed.index(f'File "{file.parent}/deeper.py", line 2, in divide\n    return 1 / x  # in deeper')
    assert here < outer_at < deeper_at
    assert f"worker of 'outer', pid {caught.value.pid}" in printed  # type: ignore[attr-defined]
    assert printed.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "^" not in printed[outer_at:], "columns are not known, so nothing is underlined"
    assert "runtime.py" not in printed
    assert "# in deeper" in caught.value.remote_traceback  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("raise SystemExit(3)", "SystemExit"),
        ("import sys; sys.exit('bye')", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise StopIteration(1)", "StopIteration"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise BaseException('base')", "BaseException"),
        ("raise BaseExceptionGroup('group', [KeyboardInterrupt()])", "BaseExceptionGroup"),
    ],
)
def test_what_would_end_something_is_only_an_error_here(statement: str, name: str) -> None:
    error = raised(statement)
    assert isinstance(error, Exception)
    assert not isinstance(error, (SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, BaseExceptionGroup))
    assert type(error).__name__ == name
    assert error.type_name == name  # type: ignore[attr-defined]


def test_an_error_can_be_pickled() -> None:
    error = raised("raise ValueError('x', 1)")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, atoll.RemoteError)
    assert str(again) == str(error)
    assert again.remote_traceback == error.remote_traceback  # type: ignore[attr-defined]
    died = atoll.WorkerDied("s", 7, phase="call", exit_code=3, stderr=["a", "b"])
    copy = pickle.loads(pickle.dumps(died))
    assert (str(copy), copy.exit_code, copy.stderr) == (str(died), 3, ("a", "b"))


def test_errors_through_asyncio_and_futures() -> None:
    @atoll.function
    def fail(kind: str) -> None:
        raise {"value": ValueError, "stop": StopIteration}[kind]("x")

    async def main() -> None:
        with pytest.raises(ValueError, match="x"):
            await fail.aio("value")
        with pytest.raises(atoll.RemoteError):
            await fail.aio("stop")

    asyncio.run(main())
    assert isinstance(fail.submit("value").exception(30), ValueError)
    assert type(fail.submit("stop").exception(30)).__name__ == "StopIteration"


def test_many_errors_in_a_row() -> None:
    @atoll.function
    def odd(x: int) -> int:
        if x % 2:
            raise ValueError(x)
        return x

    odd(0)
    pid = odd.pid
    for number in range(200):
        if number % 2:
            with pytest.raises(ValueError, match=str(number)):
                odd(number)
        else:
            assert odd(number) == number
    assert odd.pid == pid
