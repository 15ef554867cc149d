# SPDX-License-Identifier: Apache-2.0
"""Classes of the user's own that may cross, by name: the name stands on the wire, each side looks up its own class.

No class path from the wire is ever imported: what was not registered here is not known here.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional, TypeVar, Union, overload

    C = TypeVar("C", bound=type)

ENUM = "enum"
DATACLASS = "dataclass"
NAMEDTUPLE = "namedtuple"
EXCEPTION = "exception"
CUSTOM = "custom"


class Registered:
    """One registered class: how it is taken apart and put together."""

    __slots__ = ("cls", "decode", "encode", "fields", "kind", "name")

    def __init__(
        self,
        cls: type,
        name: str,
        kind: str,
        encode: Optional[Callable[[Any], Any]],
        decode: Optional[Callable[[Any], Any]],
    ) -> None:
        self.cls = cls
        self.name = name
        self.kind = kind
        self.encode = encode
        self.decode = decode
        # Without class variables and the parameters of __init__ that are no fields.
        self.fields = tuple(field.name for field in sys.modules["dataclasses"].fields(cls)) if kind == DATACLASS else ()


_by_class: Dict[type, Registered] = {}
_by_name: Dict[str, Registered] = {}

if TYPE_CHECKING:

    @overload
    def register(cls: C, /) -> C: ...
    @overload
    def register(
        cls: C,
        /,
        *,
        name: Optional[str] = None,
        encode: Optional[Callable[[Any], Any]] = None,
        decode: Optional[Callable[[Any], Any]] = None,
    ) -> C: ...
    @overload
    def register(
        *,
        name: Optional[str] = None,
        encode: Optional[Callable[[Any], Any]] = None,
        decode: Optional[Callable[[Any], Any]] = None,
    ) -> Callable[[C], C]: ...


def register(
    cls: Optional[C] = None,
    /,
    *,
    name: Optional[str] = None,
    encode: Optional[Callable[[Any], Any]] = None,
    decode: Optional[Callable[[Any], Any]] = None,
) -> Union[C, Callable[[C], C]]:
    """Let instances of a class cross by value. Call it on both sides; also a class decorator.

    Enums, dataclasses and named tuples need nothing more. An exception class becomes one that the host raises as
    itself when a worker raised it. For any other class give ``encode`` and ``decode``.

    Args:
        cls: the class.
        name: what stands for it on the wire; the class's qualified name if not given. Must be the same on both
            sides.
        encode: object -> a value that can cross.
        decode: that value -> object.

    Raises:
        TypeError: the class is of none of these kinds, and no codec was given.
        ValueError: another class has this name already.
    """
    if cls is None:
        return lambda decorated: register(decorated, name=name, encode=encode, decode=decode)
    if not isinstance(cls, type):
        raise TypeError(f"register() takes a class, not {cls!r}")
    if (encode is None) != (decode is None):
        raise TypeError(f"register({cls.__qualname__}): encode and decode go together")
    kind = CUSTOM if encode is not None else _kind_of(cls)
    if kind is None:
        raise TypeError(
            f"register({cls.__qualname__}): only enums, dataclasses, named tuples and exceptions can be registered "
            "as they are; for another class give encode= and decode="
        )
    if name is None:
        name = cls.__qualname__.rpartition("<locals>.")[2]
    known = _by_name.get(name)
    if known is not None and (known.cls.__module__, known.cls.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise ValueError(
            f"{name!r} is the registered name of {known.cls.__module__}.{known.cls.__qualname__}; "
            f"give {cls.__module__}.{cls.__qualname__} another with register(..., name=...)"
        )
    if known is not None:
        _by_class.pop(known.cls, None)  # the same class defined again, as in a notebook
    _by_class[cls] = _by_name[name] = Registered(cls, name, kind, encode, decode)
    return cls


def _kind_of(cls: type) -> Optional[str]:
    enum = sys.modules.get("enum")  # without it loaded, nothing is an enum
    if enum is not None and issubclass(cls, enum.Enum):
        return ENUM
    if issubclass(cls, BaseException):
        return EXCEPTION
    if hasattr(cls, "__dataclass_fields__"):
        return DATACLASS
    if issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make"):
        return NAMEDTUPLE
    return None


def by_class(cls: type) -> Optional[Registered]:
    """What was registered for this very class."""
    return _by_class.get(cls)


def by_name(name: str) -> Optional[Registered]:
    """What was registered under this name."""
    return _by_name.get(name)
