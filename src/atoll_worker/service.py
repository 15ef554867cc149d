# SPDX-License-Identifier: Apache-2.0
"""What a service's author writes (``expose``, ``Service``), and the function table made of it.

One table per worker, one schema per function; every way in reads this table and adds no rules of its own. What does
not belong here: how calls arrive (``runtime``).
"""

from __future__ import annotations

import sys

from .completion import complete

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, TypeVar, Union, overload

    F = TypeVar("F", bound=Callable[..., Any])

# A reserved name in every function table: what `FunctionTable.describe` returns.
DESCRIBE = "__describe__"

_MARK = "__atoll_exposed__"

# Every function exposed in this process, by name: a program that serves itself has them in several modules.
_exposed_here: Dict[str, Any] = {}
_IDEMPOTENT = "__atoll_idempotent__"

if TYPE_CHECKING:

    @overload
    def expose(function: F, /) -> F: ...
    @overload
    def expose(*, name: Optional[str] = None, idempotent: bool = False) -> Callable[[F], F]: ...


def expose(
    function: Optional[F] = None, /, *, name: Optional[str] = None, idempotent: bool = False
) -> Union[F, Callable[[F], F]]:
    """Let a function, or a method of a ``Service``, be called from outside the worker.

    It may be a plain function, a coroutine function, or a generator function of either kind, whose items are a stream.

    Args:
        function: what to expose.
        name: what callers call it; the function's own name if not given.
        idempotent: calling it twice does no more than calling it once, so a caller may ask for retries.

    Raises:
        TypeError: not a function.
    """
    if function is None:
        return lambda decorated: expose_as(decorated, name, idempotent)
    return expose_as(function, name, idempotent)


def expose_as(function: F, name: Optional[str], idempotent: bool = False) -> F:
    """``expose`` with its parameters in order."""
    inner: Any = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
    if not callable(inner) or isinstance(inner, type):
        raise TypeError(f"@expose marks functions and methods, not {function!r}")
    exposed = name or inner.__name__
    if exposed.startswith("_") or not all(part.isidentifier() for part in exposed.split(".")):
        raise TypeError(f"@expose: {exposed!r} cannot be an exposed name; begin with a letter, use name=... if need be")
    try:
        setattr(inner, _MARK, exposed)
        _exposed_here[exposed] = inner
        if idempotent:
            mark_idempotent(inner)
    except AttributeError:
        raise TypeError(f"@expose cannot mark {function!r}; write a function around it") from None
    return function


# Bits of a code object's flags, the same in every Python.
_GENERATOR = 0x20
_COROUTINE = 0x80 | 0x100  # also of types.coroutine
_ASYNC_GENERATOR = 0x200


def _flags(function: Any) -> int:
    inner = getattr(function, "__func__", function)  # a method's
    return int(getattr(getattr(inner, "__code__", None), "co_flags", 0))


def is_coroutine_function(function: Any) -> bool:
    """Whether calling it gives a coroutine, to be awaited."""
    return bool(_flags(function) & _COROUTINE)


def is_generator_function(function: Any) -> bool:
    """Whether calling it gives a generator or an asynchronous generator, whose items are a stream."""
    return bool(_flags(function) & (_GENERATOR | _ASYNC_GENERATOR)) and not is_coroutine_function(function)


def is_async_generator_function(function: Any) -> bool:
    """Whether calling it gives an asynchronous generator."""
    return bool(_flags(function) & _ASYNC_GENERATOR)


def is_idempotent(function: Any) -> bool:
    """Whether its author said that calling it twice does no more than calling it once."""
    return bool(getattr(function, _IDEMPOTENT, False))


def mark_idempotent(function: Any) -> None:
    """Calling this function twice does no more than calling it once."""
    setattr(function, _IDEMPOTENT, True)


def run_to_end(function: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function as a plain one."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return complete(function(*args, **kwargs))

    return call


class Service:
    """Base of a service with state: made once per worker, before the first call.

    ``setup`` runs after the object was made, ``teardown`` when the worker stops in order (not when it is killed).

    Of the Service classes of a file, one that another of them derives from is its base, not a service of its own:
    only the leaves are made. ``"file.py:Base"`` chooses the base nevertheless.
    """

    def setup(self) -> None:
        """Load what calls need. What it raises makes the start of the worker fail with that traceback."""

    def teardown(self) -> None:
        """Let go of what ``setup`` took."""

    def __atoll_functions__(self) -> Iterator[Tuple[str, Callable[..., Any]]]:
        """What it puts into the function table: names and functions."""
        for attribute in dir(type(self)):
            exposed = getattr(getattr(type(self), attribute, None), _MARK, None)
            if exposed is not None:
                yield exposed, getattr(self, attribute)


class FunctionTable:
    """The exposed functions of one worker, by name, and the services whose methods they are."""

    def __init__(self) -> None:
        self.functions: Dict[str, Callable[..., Any]] = {}
        self.services: List[Service] = []

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """Raises:
        ValueError: the name is taken.
        """
        if name in self.functions and self.functions[name] != function:  # the same under two names is one
            raise ValueError(
                f"two functions are exposed as {name!r}: {_place(self.functions[name])} and {_place(function)}; "
                "give one of them another name with @expose(name=...), or choose one class with 'module:Class'"
            )
        self.functions[name] = function

    def add_service(self, cls: Callable[[], Service]) -> None:
        """Make the object of a service class and expose its methods. ``setup`` is not called yet."""
        service = cls()
        self.services.append(service)
        for name, function in service.__atoll_functions__():
            self.add(name, function)

    def set_up(self) -> None:
        """Call ``setup`` of every service, in order."""
        for service in self.services:
            service.setup()

    def tear_down(self) -> None:
        """Call ``teardown`` of every service, last first. What they raise goes to stderr; all are called."""
        for service in reversed(self.services):
            try:
                service.teardown()
            except BaseException:
                sys.excepthook(*sys.exc_info())

    def describe(self) -> Dict[str, Dict[str, Any]]:
        """For every function: its signature as text, docstring and the JSON Schema of its parameters."""
        from .schema import describe_function

        return {
            name: describe_function(function) for name, function in sorted(self.functions.items()) if name != DESCRIBE
        }


def _place(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"


def _add_members(table: FunctionTable, module: ModuleType) -> None:
    """What a module itself defines."""
    members = list(vars(module).values())
    bases = {base for one in members if _is_own_service(one, module) for base in one.__mro__[1:]}
    made = set()  # a class may have two names
    for one in members:
        if _is_own_service(one, module):
            if one not in bases and one not in made:
                made.add(one)
                table.add_service(one)
        elif (
            not isinstance(one, type)
            and getattr(one, "__module__", None) == module.__name__
            and isinstance(getattr(one, _MARK, None), str)
        ):
            table.add(getattr(one, _MARK), one)


def table_of_module(module: ModuleType, class_name: Optional[str]) -> FunctionTable:
    """The function table of a service's module: its exposed functions and its ``Service`` classes, or one class.

    Only what the module itself defines counts, not what it imported; and of its classes, only those that no other of
    them derives from.

    Raises:
        ValueError: nothing is exposed, there is no such class, or a name is exposed twice.
    """
    table = FunctionTable()
    if class_name is not None:
        cls = getattr(module, class_name, None)
        if not (isinstance(cls, type) and issubclass(cls, Service)):
            classes = sorted(name for name, one in vars(module).items() if _is_own_service(one, module))
            raise ValueError(
                f"{_name_of(module)} has no Service class {class_name!r}; its services are: {classes or 'none'}"
            )
        table.add_service(cls)
    else:
        _add_members(table, module)
    if not table.functions:
        raise ValueError(
            f"{_name_of(module)} exposes nothing: mark functions, or methods of a Service class, with @expose"
        )
    return table


def _is_own_service(one: object, module: ModuleType) -> bool:
    return (
        isinstance(one, type) and issubclass(one, Service) and one is not Service and one.__module__ == module.__name__
    )


def table_of_program(module: ModuleType) -> FunctionTable:
    """The function table of a program that serves itself: what its main module has, and every other function that was
    exposed in this process so far, wherever it was defined. It may be empty.

    Raises:
        ValueError: a name is exposed twice in that module.
    """
    table = FunctionTable()
    _add_members(table, module)
    for name, function in _exposed_here.items():
        # Of those of one name, the last, as in a module. A method is exposed by its object only.
        is_method = "." in getattr(function, "__qualname__", "").rpartition("<locals>.")[2]
        if name not in table.functions and not is_method:
            table.add(name, function)
    return table


def _name_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__
