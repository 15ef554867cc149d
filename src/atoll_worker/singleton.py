# SPDX-License-Identifier: Apache-2.0
"""One object of the host's, used from any worker as if it were there.

A class that derives from ``ProxiedSingleton`` is imported by both sides. In the host, calling it always gives the one
instance. In a worker it gives a stand-in: its public methods and properties are those of the host's instance, except
what is marked ``@local``, which runs in the worker.
"""

from __future__ import annotations

from _thread import RLock

from .context import is_worker
from .references import READ
from .service import is_coroutine_function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, ClassVar, Dict, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

_LOCAL = "__atoll_local__"
_lock = RLock()
_classes: Dict[str, type] = {}


def local(function: F) -> F:
    """Mark a method, or a property's getter, of a ``ProxiedSingleton`` to run where it is called."""
    setattr(function, _LOCAL, True)
    return function


class ProxiedSingleton:
    """Base of a class with one instance, in the host, that every worker can use.

    Both sides must import the class under the same name. ``__init__`` runs once, in the host. In a worker a public
    method crosses to the host's instance, where it may be ``async def`` (then it is awaited here too); so do
    properties. Names that begin with an underscore, and what is marked with ``@local``, stay in the worker.
    """

    _atoll_instance: ClassVar[Any] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._atoll_instance = None
        if is_worker():
            _stand_in(cls)
        else:
            _classes[_name_of(cls)] = cls
            if "__init__" in cls.__dict__:
                setattr(cls, "__init__", _once(cls.__dict__["__init__"]))  # noqa: B010 - mypy knows no such assignment

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        with _lock:
            if cls._atoll_instance is None:
                cls._atoll_instance = super().__new__(cls)
            return cls._atoll_instance


def _once(initialise: Callable[..., None]) -> Callable[..., None]:
    """``__init__`` is called every time the class is; only the first is for real."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        with _lock:
            done = self.__dict__.setdefault("_atoll_initialised", set())
            if initialise in done:
                return
            done.add(initialise)
            try:
                initialise(self, *args, **kwargs)
            except BaseException:
                done.discard(initialise)
                type(self)._atoll_instance = None
                raise

    __init__.__doc__ = initialise.__doc__
    return __init__


def _stand_in(cls: type) -> None:
    """Let a class defined in a worker stand in for the host's."""
    if "__init__" in cls.__dict__ and not getattr(cls.__dict__["__init__"], _LOCAL, False):
        cls.__init__ = lambda self, *args, **kwargs: None  # type: ignore[misc]
    for name, member in list(cls.__dict__.items()):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            if not getattr(member.fget, _LOCAL, False):
                setattr(cls, name, property(_reader(name), doc=member.__doc__))
        elif isinstance(member, (staticmethod, classmethod)):
            continue  # they are the class's, not the instance's: they run where they are called
        elif callable(member) and not isinstance(member, type) and not getattr(member, _LOCAL, False):
            setattr(cls, name, _caller(name, member))


def _target(stand_in: object) -> str:
    """What the host knows the instance by; that of a derived class for what it inherits."""
    return "singleton:" + _name_of(type(stand_in))


def _name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _caller(name: str, method: Any) -> Any:
    from .context import lendings

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return lendings[0].invoke(_target(self), name, args, kwargs)

    async def call_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await lendings[0].invoke_async(_target(self), name, args, kwargs)

    stand_in = call_async if is_coroutine_function(method) else call
    stand_in.__name__ = name
    stand_in.__doc__ = method.__doc__
    return stand_in


def _reader(name: str) -> Callable[[Any], Any]:
    from .context import channel_now

    def read(self: Any) -> Any:
        return channel_now().ask(READ, (_target(self), name), {})

    return read


def instance_named(name: str) -> Any:
    """The host's instance of the class of this name.

    Raises:
        LookupError: there is no such class in this process.
    """
    cls = _classes.get(name)
    if cls is None:
        # The module of a file that is run, or loaded as a service, has another name there.
        qualname = name.rpartition(":")[2]
        same = [one for one in _classes.values() if one.__qualname__ == qualname]
        cls = same[0] if len(same) == 1 else None
    if cls is None:
        known = ", ".join(sorted(_classes)) or "none"
        raise LookupError(
            f"the host knows no ProxiedSingleton {name!r}; import the module that defines it there (known: {known})"
        )
    return cls()


__all__ = ["ProxiedSingleton", "instance_named", "local"]
