# SPDX-License-Identifier: Apache-2.0
"""Values of any kind across the border: data by value, every other object as a reference.

The same on both sides, for extensions: what they pass is often a model, of which nobody would say ``ref`` by hand. What
always holds: arrays, tensors and plain data cross by value; any other object stays where it is, and what its methods
return is passed in the same way; an object that comes back to where it lives is that object again.

Of an object that is lent the other side reads what is public and is data, a function, or an object of the package that
its own class is of: its parts. Objects of other packages are not read, only called if they can be, and modules and
classes neither: from those one could walk on to whatever the process has. What does not belong here: how references
cross (``references``).
"""

from __future__ import annotations

import sys
from weakref import WeakKeyDictionary

from .adapters import reducer_of
from .arrays import array_reducer_of
from .completion import is_coroutine
from .references import Proxy, Ref
from .streams import is_iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator, MutableMapping, Tuple

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, set, frozenset))


class _Bound:
    def method(self) -> None: ...


# What may be a part of any object.
_FUNCTIONS = frozenset((type(is_iterator), type([].append), type(_Bound().method)))


# What makes a method of a class, for whoever looks into the class itself.
_METHODS = (type(is_iterator), type(str.join), type(str.__str__), staticmethod, classmethod)
_MODULE = type(sys)
_methods: MutableMapping[type, Tuple[str, ...]] = WeakKeyDictionary()


class Lent:
    """An object that is lent, as the other side sees it: each result of its methods is passed on as the object was."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._value, name)
        _check_part(member, self._value, name)
        return _passing_on(self, member) if callable(member) else lend(member)

    def __atoll_read__(self, name: str) -> Any:
        """An attribute as it crosses.

        Raises:
            AttributeError: there is none, or it is not read from the other side.
        """
        if type(name) is not str or name.startswith("_"):
            raise AttributeError(f"{name!r} is not public, so it cannot be read from the other side")
        member = getattr(self._value, name)
        if _is_foreign(member, self._value) and callable(member):
            return Ref(CallOnly(member, self._value, name))
        _check_read(member, self._value, name)
        if member is self._value:
            return Ref(self)
        return lend(member)

    def __atoll_methods__(self) -> Tuple[str, ...]:
        """Names of the public methods of its class, which need not be read to be called."""
        cls = type(self._value)
        names = _methods.get(cls)
        if names is None:
            members = {name: member for one in reversed(cls.__mro__) for name, member in vars(one).items()}
            names = tuple(
                name for name, member in members.items() if name[:1] != "_" and isinstance(member, _METHODS)
            )  # fmt: skip
            try:
                _methods[cls] = names
            except TypeError:
                pass  # a class that cannot be referred to weakly
        hidden = getattr(self._value, "__dict__", None)
        if type(hidden) is dict and not hidden.keys().isdisjoint(names):
            return tuple(name for name in names if name not in hidden)
        return names

    def _calling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of it that takes and gives what crosses."""
        return _passing_on(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _passing_on(self, self._value)(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return lend(self._value[unlend(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._value[unlend(key)] = unlend(value)

    def __delitem__(self, key: Any) -> None:
        del self._value[unlend(key)]

    def __len__(self) -> int:
        return len(self._value)

    def __contains__(self, item: Any) -> bool:
        return unlend(item) in self._value

    def __iter__(self) -> Iterator[Any]:
        return (lend(item) for item in self._value)

    def __enter__(self) -> Any:
        return _passing_on(self, self._value.__enter__)()

    def __exit__(self, *error: Any) -> Any:
        return self._value.__exit__(*error)


class CallOnly:
    """A part of a lent object that is of another package: it can be called from the other side, and nothing else."""

    __slots__ = ("_name", "_owner", "_value")

    def __init__(self, value: Any, owner: Any, name: str) -> None:
        self._value = value
        self._owner = owner
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _passing_on(self, self._value)(*args, **kwargs)

    def __atoll_read__(self, name: str) -> Any:
        raise AttributeError(f"{name!r}: {_foreign(self._value, self._owner, self._name)}")

    def __atoll_methods__(self) -> Tuple[str, ...]:
        return ()


def _check_part(member: Any, owner: Any, name: str) -> None:
    """Refuse what nobody may have from the other side, not even to call it."""
    kind = "module" if isinstance(member, _MODULE) else "class" if isinstance(member, type) else None
    if kind is not None:
        raise AttributeError(
            f"{name!r} of {_spelled(type(owner))} is or holds a {kind}, which is not used from the other side; give "
            f"{type(owner).__name__} a method that does what is needed"
        )


def _check_read(member: Any, owner: Any, name: str) -> None:
    """Refuse what is not read: see the top of this file. What containers hold is looked at too."""
    _check_part(member, owner, name)
    if isinstance(member, (list, tuple)):
        for item in member:
            _check_read(item, owner, name)
    elif isinstance(member, dict):
        for item in list(member.values()):
            _check_read(item, owner, name)
    elif _is_foreign(member, owner):
        raise AttributeError(_foreign(member, owner, name))


def _is_foreign(member: Any, owner: Any) -> bool:
    """Whether it is neither data nor a part of its owner."""
    cls = type(member)
    return (
        cls not in _PLAIN
        and cls not in _FUNCTIONS
        and not isinstance(member, (Proxy, Ref, str, list, tuple, dict, type, _MODULE))
        and reducer_of(cls) is None
        and array_reducer_of(cls) is None
        and cls.__module__.partition(".")[0] != type(owner).__module__.partition(".")[0]
    )


def _foreign(member: Any, owner: Any, name: str) -> str:
    return (
        f"{name!r} of {_spelled(type(owner))} is or holds a {_spelled(type(member))}, neither data nor of the same "
        f"package, so it is not read from the other side; give {type(owner).__name__} a method that does what is needed"
    )


def _spelled(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _passing_on(lent: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*unlend(args), **unlend(kwargs))
        if result is lent._value:
            return lent
        return _finish(result) if is_coroutine(result) else lend(result)

    return call


async def _finish(coroutine: Any) -> Any:
    return lend(await coroutine)


def lend(value: Any) -> Any:
    """A value as it crosses: containers are copied, with every object in them that is no data wrapped in ``ref``."""
    cls = type(value)
    if cls in _PLAIN or issubclass(cls, (Proxy, Ref)):
        return value
    if cls is list:
        return [lend(item) for item in value]
    if cls is tuple:
        return tuple(lend(item) for item in value)
    if cls is dict:
        return {key: lend(item) for key, item in value.items()}
    if is_iterator(cls) or reducer_of(cls) is not None or array_reducer_of(cls) is not None:
        return value
    for plain in (str, dict, list, tuple):  # a class of the user's: what it holds crosses, its class does not
        if issubclass(cls, plain):
            return lend(plain.__str__(value) if plain is str else plain(value))
    if cls is Lent or cls is CallOnly:
        return Ref(value)
    if isinstance(value, _MODULE):
        raise TypeError(f"{value!r:.100} is a module, of which whoever has it could call anything, so it is not lent")
    return Ref(Lent(value))


def unlend(value: Any) -> Any:
    """A value that crossed: objects of this side's that came back are themselves again."""
    cls = type(value)
    if cls is Lent or cls is CallOnly:
        return value._value
    if cls is list:
        return [unlend(item) for item in value]
    if cls is tuple:
        return tuple(unlend(item) for item in value)
    if cls is dict:
        return {key: unlend(item) for key, item in value.items()}
    return value
