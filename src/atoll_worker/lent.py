# SPDX-License-Identifier: Apache-2.0
"""Values of any kind across the border: data by value, every other object as a reference.

The same on both sides, for extensions: what they pass is often a model, of which nobody would say ``ref`` by hand. What
always holds: arrays, tensors and plain data cross by value; any other object stays where it is, and what its methods
return is passed in the same way; an object that comes back to where it lives is that object again. What does not belong
here: how references cross (``references``).
"""

from __future__ import annotations

from .adapters import reducer_of
from .arrays import array_reducer_of
from .completion import is_coroutine
from .references import Proxy, Ref
from .streams import is_iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, set, frozenset))


class _Bound:
    def method(self) -> None: ...


# What is called back, as every callable argument is.
_FUNCTIONS = frozenset((type(is_iterator), type([].append), type(_Bound().method)))


class Lent:
    """An object that is lent, as the other side sees it: each result of its methods is passed on as the object was."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._value, name)
        return _passing_on(self, member) if callable(member) else lend(member)

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


def _passing_on(lent: Lent, function: Callable[..., Any]) -> Callable[..., Any]:
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
    if cls in _PLAIN or cls in _FUNCTIONS or issubclass(cls, (Proxy, Ref)):
        return value
    if cls is list:
        return [lend(item) for item in value]
    if cls is tuple:
        return tuple(lend(item) for item in value)
    if cls is dict:
        return {key: lend(item) for key, item in value.items()}
    if is_iterator(cls) or reducer_of(cls) is not None or array_reducer_of(cls) is not None:
        return value
    for plain in (str, dict, list):  # a class of the user's: what it holds crosses, its class does not
        if issubclass(cls, plain):
            return lend(plain.__str__(value) if plain is str else plain(value))
    if cls is Lent:
        return Ref(value)
    return Ref(Lent(value))


def unlend(value: Any) -> Any:
    """A value that crossed: objects of this side's that came back are themselves again."""
    cls = type(value)
    if cls is Lent:
        return value._value
    if cls is list:
        return [unlend(item) for item in value]
    if cls is tuple:
        return tuple(unlend(item) for item in value)
    if cls is dict:
        return {key: unlend(item) for key, item in value.items()}
    return value
