# SPDX-License-Identifier: Apache-2.0
"""The closed list of types that cross, beside the built-in containers and scalars.

For each: a ``_reduce_*`` that takes an object apart into plain values, and a ``restore_*`` that puts it together
again, with the receiver's own modules. ``RESTORERS`` is everything that a data pickle may call. What does not belong
here: pickling itself (``values``), and classes of the user's own (``registry``).

An adapter is found by the name of the type, so that no module is imported for a type nobody uses.
"""

from __future__ import annotations

from .errors import DecodeError
from .registry import CUSTOM, DATACLASS, ENUM, NAMEDTUPLE, Registered, by_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, Optional, Tuple

    Reduced = Tuple[Callable[..., Any], Tuple[Any, ...]]
    Reducer = Callable[[Any], Reduced]


class Unsupported(Exception):
    """A value has no adapter; ``value`` is it, ``why`` says more where there is more to say."""

    def __init__(self, value: object, why: str = "") -> None:
        super().__init__(value, why)
        self.value = value
        self.why = why


# -- built in ------------------------------------------------------------------------------------------------------


def restore_builtin(name: str, *parts: Any) -> Any:
    """complex, range, slice and Ellipsis."""
    if name == "complex":
        return complex(*parts)
    if name == "range":
        return range(*parts)
    if name == "slice":
        return slice(*parts)
    if name == "Ellipsis":
        return Ellipsis
    raise DecodeError(f"no built-in type {name!r} can cross")


def _reduce_complex(value: complex) -> Reduced:
    return restore_builtin, ("complex", value.real, value.imag)


def _reduce_range(value: range) -> Reduced:
    return restore_builtin, ("range", value.start, value.stop, value.step)


def _reduce_slice(value: slice) -> Reduced:
    return restore_builtin, ("slice", value.start, value.stop, value.step)


def _reduce_ellipsis(value: object) -> Reduced:
    return restore_builtin, ("Ellipsis",)


# -- standard library ----------------------------------------------------------------------------------------------


def restore_date(*parts: int) -> Any:
    import datetime

    return datetime.date(*parts)


def restore_time(hour: int, minute: int, second: int, microsecond: int, zone: Any, fold: int) -> Any:
    import datetime

    return datetime.time(hour, minute, second, microsecond, zone, fold=fold)


def restore_datetime(
    year: int,
    month: int,
    day: int,
    hour: int,
    minute: int,
    second: int,
    microsecond: int,
    zone: Any,
    fold: int,
) -> Any:
    import datetime

    return datetime.datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def restore_timedelta(days: int, seconds: int, microseconds: int) -> Any:
    import datetime

    return datetime.timedelta(days, seconds, microseconds)


def restore_timezone(offset: Any, name: Optional[str]) -> Any:
    import datetime

    if name is None:
        return datetime.timezone(offset)  # one without offset is datetime.timezone.utc itself
    return datetime.timezone(offset, name)


def restore_zoneinfo(key: str) -> Any:
    import zoneinfo

    return zoneinfo.ZoneInfo(key)


def restore_decimal(text: str) -> Any:
    import decimal

    return decimal.Decimal(text)


def restore_fraction(numerator: int, denominator: int) -> Any:
    import fractions

    return fractions.Fraction(numerator, denominator)


def restore_uuid(number: int) -> Any:
    import uuid

    return uuid.UUID(int=number)


def restore_path(flavour: str, text: str) -> Any:
    import pathlib

    if flavour == "posix":
        return pathlib.PurePosixPath(text)
    if flavour == "windows":
        return pathlib.PureWindowsPath(text)
    return pathlib.Path(text)


def _reduce_date(value: Any) -> Reduced:
    return restore_date, (value.year, value.month, value.day)


def _reduce_time(value: Any) -> Reduced:
    return restore_time, (
        value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold,
    )  # fmt: skip


def _reduce_datetime(value: Any) -> Reduced:
    return restore_datetime, (
        value.year, value.month, value.day,
        value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold,
    )  # fmt: skip


def _reduce_timedelta(value: Any) -> Reduced:
    return restore_timedelta, (value.days, value.seconds, value.microseconds)


def _reduce_timezone(value: Any) -> Reduced:
    # A timezone's arguments are its offset and, only if one was given, its name.
    offset, *name = value.__getinitargs__()
    return restore_timezone, (offset, name[0] if name else None)


def _reduce_zoneinfo(value: Any) -> Reduced:
    if value.key is None:
        raise Unsupported(value, "a ZoneInfo read from a file has no key to find it by on the other side")
    return restore_zoneinfo, (value.key,)


def _reduce_decimal(value: Any) -> Reduced:
    return restore_decimal, (str(value),)


def _reduce_fraction(value: Any) -> Reduced:
    return restore_fraction, (value.numerator, value.denominator)


def _reduce_uuid(value: Any) -> Reduced:
    return restore_uuid, (value.int,)


def _reduce_path(value: Any) -> Reduced:
    return restore_path, ("", str(value))


def _reduce_pure_posix_path(value: Any) -> Reduced:
    return restore_path, ("posix", str(value))


def _reduce_pure_windows_path(value: Any) -> Reduced:
    return restore_path, ("windows", str(value))


# -- registered classes --------------------------------------------------------------------------------------------


def restore_registered(name: str, parts: Any) -> Any:
    """Stands in the data pickle; ``values`` puts a function in its place that knows which names were missing."""
    raise AssertionError("replaced by values.Decoder")


def _reduce_registered(known: Registered, value: Any) -> Reduced:
    if known.kind == ENUM:
        # A flag may be a combination without a name of its own.
        parts: Any = value.name if value.name in known.cls.__members__ else (value.value,)  # type: ignore[attr-defined]
    elif known.kind == DATACLASS:
        parts = {field: getattr(value, field) for field in known.fields}
    elif known.kind == NAMEDTUPLE:
        parts = tuple(value)
    elif known.kind == CUSTOM:
        assert known.encode is not None
        parts = known.encode(value)
    else:
        raise Unsupported(value, "an exception can be raised across, but is not a value")
    return restore_registered, (known.name, parts)


def build_registered(known: Registered, parts: Any) -> Any:
    """The object of a registered class from its parts.

    Raises:
        DecodeError: the parts do not fit the class.
    """
    cls: Any = known.cls
    if known.kind == ENUM:
        try:
            return cls[parts] if isinstance(parts, str) else cls(parts[0])
        except (KeyError, ValueError) as error:
            raise DecodeError(f"the enum {known.name} has no member {parts!r} on this side: {error}") from None
    if known.kind == DATACLASS:
        if not isinstance(parts, dict) or set(parts) != set(known.fields):
            raise DecodeError(
                f"the dataclass {known.name} has the fields {sorted(known.fields)} on this side, "
                f"but {sorted(parts) if isinstance(parts, dict) else parts!r} came"
            )
        value = object.__new__(cls)
        for field, part in parts.items():
            object.__setattr__(value, field, part)  # frozen ones too, and without running __init__ again
        return value
    if known.kind == NAMEDTUPLE:
        try:
            return cls._make(parts)
        except TypeError as error:
            raise DecodeError(f"the named tuple {known.name} on this side: {error}") from None
    if known.kind == CUSTOM:
        assert known.decode is not None
        return known.decode(parts)
    raise DecodeError(f"{known.name} is an exception, not a value")


# -- look-up -------------------------------------------------------------------------------------------------------

# -- references ----------------------------------------------------------------------------------------------------


def restore_lent(kind: str, number: int, methods: Tuple[str, ...] = ()) -> Any:
    """What the other side lent; the decoder of a connection puts the method that knows in this place."""
    raise DecodeError("a reference has no meaning here")


def restore_own(number: int) -> Any:
    """What this side lent, come back; as above."""
    raise DecodeError("a reference has no meaning here")


def restore_returned(number: int) -> Any:
    """The same in a result: the other side keeps its proxy until it is told that this one has it."""
    raise DecodeError("a reference has no meaning here")


RESTORERS: Dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        restore_builtin, restore_date, restore_time, restore_datetime, restore_timedelta, restore_timezone,
        restore_zoneinfo, restore_decimal, restore_fraction, restore_uuid, restore_path, restore_registered,
        restore_lent, restore_own, restore_returned,
    )
}  # fmt: skip

_BY_NAME: Dict[Tuple[str, str], Reducer] = {
    ("builtins", "complex"): _reduce_complex,
    ("builtins", "range"): _reduce_range,
    ("builtins", "slice"): _reduce_slice,
    ("builtins", "ellipsis"): _reduce_ellipsis,
    ("datetime", "date"): _reduce_date,
    ("datetime", "time"): _reduce_time,
    ("datetime", "datetime"): _reduce_datetime,
    ("datetime", "timedelta"): _reduce_timedelta,
    ("datetime", "timezone"): _reduce_timezone,
    ("zoneinfo", "ZoneInfo"): _reduce_zoneinfo,
    ("decimal", "Decimal"): _reduce_decimal,
    ("fractions", "Fraction"): _reduce_fraction,
    ("uuid", "UUID"): _reduce_uuid,
    ("pathlib", "PosixPath"): _reduce_path,
    ("pathlib", "WindowsPath"): _reduce_path,
    ("pathlib", "PurePosixPath"): _reduce_pure_posix_path,
    ("pathlib", "PureWindowsPath"): _reduce_pure_windows_path,
}
# The same types where another version of Python keeps them.
_MOVED = {
    "pathlib._local": "pathlib",  # 3.13
    "pathlib._abc": "pathlib",
    "zoneinfo._zoneinfo": "zoneinfo",
    "_pydatetime": "datetime",
}

_found: Dict[type, Reducer] = {}


def reducer_of(cls: type) -> Optional[Reducer]:
    """How objects of this very class are taken apart, or None if they cannot cross."""
    registered = by_class(cls)
    if registered is not None:
        known = registered
        return lambda value: _reduce_registered(known, value)
    reducer = _found.get(cls)
    if reducer is None:
        module = _MOVED.get(cls.__module__, cls.__module__)
        reducer = _BY_NAME.get((module, cls.__qualname__))
        if reducer is not None:
            _found[cls] = reducer
    return reducer


def children(value: Any) -> Iterator[Tuple[str, Any]]:
    """What a value consists of, each with the words that lead there: ``[0]``, ``['key']``, ``.field``.

    Only for describing it: where the value's own code raises, it consists of no more.
    """
    try:
        yield from _children(value, type(value))
    except Exception:
        return


def _children(value: Any, cls: type) -> Iterator[Tuple[str, Any]]:
    # Never isinstance: it asks a value for its __class__, which may be a property that raises.
    if issubclass(cls, dict):
        for key, item in value.items():
            yield f" (the key {_short(key)})", key
            yield f"[{_short(key)}]", item
    elif issubclass(cls, (list, tuple)):
        names = getattr(cls, "_fields", None)
        for index, item in enumerate(value):
            yield (f".{names[index]}" if names else f"[{index}]"), item
    elif issubclass(cls, (set, frozenset)):
        for item in value:
            yield " (an item of the set)", item
    elif cls.__name__ == "ndarray" and value.dtype.kind == "O":
        for index, item in enumerate(value.ravel().tolist()):
            yield f".flat[{index}]", item
    elif cls.__module__.partition(".")[0] == "pandas":
        yield from _children_of_pandas(value, cls.__name__)
    else:
        registered = by_class(cls)
        if registered is not None and registered.kind == DATACLASS:
            for field in registered.fields:
                yield f".{field}", getattr(value, field, None)
        elif registered is not None and registered.kind == CUSTOM and registered.encode is not None:
            yield " (encoded)", registered.encode(value)
        elif cls.__module__ == "datetime":
            yield ".tzinfo", getattr(value, "tzinfo", None)


def _children_of_pandas(value: Any, name: str) -> Iterator[Tuple[str, Any]]:
    if name == "DataFrame":
        for label, column in value.items():
            if column.dtype == object:
                yield f"[{_short(label)}]", column
        yield ".columns", value.columns
    elif value.dtype == object:
        for index, item in enumerate(value.tolist()):
            yield (f".iloc[{index}]" if name == "Series" else f"[{index}]"), item
    if name in ("DataFrame", "Series"):
        yield ".index", value.index
        yield ".attrs", value.attrs


def _short(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:
        text = f"of type {type(key).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
