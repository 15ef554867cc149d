# SPDX-License-Identifier: Apache-2.0
"""What pandas has: frames, series, indexes, extension arrays and their scalars, taken apart into arrays of numpy.

What always holds:

* Every column crosses as what it is made of, by its dtype: a column of numpy's as that array, a categorical as codes
  and categories, a nullable one as values and mask, and so on. So values and dtypes are exact, pyarrow is needed for
  Arrow's own dtypes only, the columns are copied once and not at all where they lie in a segment already, and the
  frame is put together by the receiver's pandas without a copy.
* Columns of strings cross in Arrow's layout where the sender has pyarrow loaded; the receiver needs it not.
* Columns of Python objects cross object by object (many strings as above, into objects again); what cannot cross is
  named by its column.
* What is put together may be written to, also where arrays that arrive may not: pandas cannot work otherwise.
* Between versions: where one has no such dtype (strings before 3, units of time before 2), it is what that version has
  instead. Labels that are all strings are what the receiver's pandas makes of strings.

Only what pandas documents is used here, because the two versions differ.
"""

from __future__ import annotations

import sys

from .adapters import Unsupported
from .arrays import library
from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    from .arrays import Carrier, Reduced, Reducer

    # How an array crosses: its kind, and plain values and arrays that depend on that.
    Parts = Tuple[Any, ...]


def _pandas() -> Any:
    return library("pandas", "a value of pandas")


class _NoPlace(Exception):
    """A dtype has no place on the wire; the message says why, and what to do."""


# -- arrays of one dtype -------------------------------------------------------------------------------------------


def _take(array: Any) -> Parts:
    """What an extension array, or the values of a series or index, consist of."""
    dtype = array.dtype
    kind = type(dtype).__name__
    if not hasattr(dtype, "na_value") or kind in ("NumpyEADtype", "PandasDtype"):
        values = array.to_numpy()
        return _take_objects(values) if values.dtype.hasobject else ("numpy", values)
    take = _TAKE.get(kind)
    if take is None or type(dtype).__module__.partition(".")[0] != "pandas":
        raise _NoPlace(f"of dtype {dtype}, which has no place on the wire; to_numpy() or astype(object) has")
    return take(array)


def _take_categorical(array: Any) -> Parts:
    return "categorical", array.codes, array.categories, array.ordered


def _take_zoned(array: Any) -> Parts:
    numpy = sys.modules["numpy"]
    unit = array.dtype.unit
    return "zoned", numpy.asarray(array, dtype=f"M8[{unit}]"), _spell_zone(array.dtype.tz)


def _spell_zone(zone: Any) -> Any:
    """A time zone by name where it has one, else as one of the standard library."""
    import datetime

    for attribute in ("key", "zone"):  # of zoneinfo, of pytz
        name = getattr(zone, attribute, None)
        if isinstance(name, str):
            return name
    if type(zone) is datetime.timezone:
        return zone
    offset = zone.utcoffset(None)  # one that is the same at all times
    if offset is None:
        raise _NoPlace(f"in the time zone {zone!r}, which has no name; use one of zoneinfo")
    return datetime.timezone(offset)


def _take_period(array: Any) -> Parts:
    return "period", array.asi8, array.dtype.freq.freqstr


def _take_interval(array: Any) -> Parts:
    return "interval", array.left, array.right, array.dtype.closed


def _take_masked(array: Any) -> Parts:
    # What is missing may be anything below the mask; a zero fits all of these dtypes.
    dtype = array.dtype
    numpy_dtype = "bool" if dtype.name == "boolean" else dtype.name.lower()
    missing = array.isna()
    values = array.to_numpy(dtype=numpy_dtype, na_value=False if numpy_dtype == "bool" else 0)
    return "masked", values, missing


def _take_strings(array: Any) -> Parts:
    dtype = array.dtype
    missing = "nan" if isinstance(dtype.na_value, float) else "NA"
    # What is the default here is to be the default there.
    try:
        storage = None if dtype == _string_dtype(_pandas(), missing, None) else dtype.storage
    except TypeError:  # before pandas 2.3, where "pyarrow_numpy" is what "pyarrow" with NaN is now
        storage = "pyarrow"
    text = _take_text(array) if "pyarrow" in sys.modules else None
    if text is not None:
        return "text", *text, missing, storage
    return "strings", array.to_numpy(dtype=object, na_value=None), missing, storage


def _take_objects(values: Any) -> Parts:
    """Objects, which cross one by one; but many that are all strings, as such, which is faster."""
    if "pyarrow" not in sys.modules or values.ndim != 1 or len(values) < _MANY:
        return "objects", values
    items = values.tolist()
    others = set(map(type, items)) - {str}
    if str not in map(type, items):
        return "objects", values
    if others == {float} and all(item != item for item in items if type(item) is float):
        missing = "nan"
    elif others <= {type(None)}:
        missing = "None"
    else:
        return "objects", values
    del items
    pyarrow = sys.modules["pyarrow"]
    try:
        arrow = pyarrow.array(values, pyarrow.large_string(), from_pandas=True)
    except UnicodeEncodeError:  # half a surrogate pair
        return "objects", values
    return "text objects", *_places_of_text(arrow), missing


# Strings of a column of objects from which on it is worth a look at them all.
_MANY = 1000


def _take_text(array: Any) -> Optional[Tuple[Any, Any, Any]]:
    """Strings in the layout that Arrow has for them, which takes no object for each: where each begins and the last
    ends, all of them in UTF-8, and which are missing (None if none is). None if they cannot be written that way.
    """
    pyarrow = sys.modules["pyarrow"]
    try:
        arrow = array.__arrow_array__()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    if hasattr(arrow, "combine_chunks"):
        arrow = arrow.chunk(0) if arrow.num_chunks == 1 else arrow.combine_chunks()
    return _places_of_text(arrow.cast(pyarrow.large_string()))


def _places_of_text(arrow: Any) -> Tuple[Any, Any, Any]:
    numpy = sys.modules["numpy"]
    _, ends, data = arrow.buffers()
    if not len(arrow) or ends is None:
        return numpy.zeros(1, "<i8"), numpy.zeros(0, "u1"), None
    ends = numpy.frombuffer(ends, "<i8")[arrow.offset : arrow.offset + len(arrow) + 1]
    first, last = int(ends[0]), int(ends[-1])
    data = numpy.zeros(0, "u1") if data is None else numpy.frombuffer(data, "u1")[first:last]
    missing = arrow.is_null().to_numpy(zero_copy_only=False) if arrow.null_count else None
    return (ends - first if first else ends), data, missing


def _take_arrow(array: Any) -> Parts:
    return "arrow", array.__arrow_array__()


_TAKE: Dict[str, Callable[[Any], Parts]] = {
    "CategoricalDtype": _take_categorical,
    "DatetimeTZDtype": _take_zoned,
    "PeriodDtype": _take_period,
    "IntervalDtype": _take_interval,
    "StringDtype": _take_strings,
    "ArrowDtype": _take_arrow,
    **dict.fromkeys(
        [f"{name}Dtype" for width in (8, 16, 32, 64) for name in (f"Int{width}", f"UInt{width}")]
        + ["Float32Dtype", "Float64Dtype", "BooleanDtype"],
        _take_masked,
    ),
}


def _own(array: Any) -> Any:
    """A view of an array that arrived which may be written to; a copy where its memory may not."""
    if array.flags.writeable:
        return array
    view = array.view()
    try:
        view.flags.writeable = True
    except ValueError:
        return array.copy(order="K")
    return view


def _kept(array: Any) -> Any:
    """An array that is checked once, and relied on from then on; a copy where somebody else could still change it."""
    return array if array.flags.writeable else array.copy()


def _build(pandas: Any, parts: Parts) -> Any:
    """What pandas takes for the values of these parts: an array of numpy, or an extension array."""
    kind = parts[0]
    build = _BUILD.get(kind)
    if build is None:
        raise DecodeError(f"pandas has no array of the kind {kind!r}")
    return build(pandas, *parts[1:])


def _build_numpy(pandas: Any, values: Any) -> Any:
    return _own(values)


def _build_categorical(pandas: Any, codes: Any, categories: Any, ordered: bool) -> Any:
    return pandas.Categorical.from_codes(_kept(codes), categories=categories, ordered=ordered)


def _build_zoned(pandas: Any, values: Any, zone: Any) -> Any:
    return pandas.DatetimeIndex(values).tz_localize("UTC").tz_convert(_zone_of(zone)).array


def _zone_of(zone: Any) -> Any:
    # With this prefix, pandas takes the rest for the path of a file.
    if isinstance(zone, str) and zone.startswith("dateutil"):
        raise DecodeError(f"no time zone is called {zone!r}")
    return zone


def _build_period(pandas: Any, ordinals: Any, freq: str) -> Any:
    dtype = _with_alias(freq, lambda alias: pandas.PeriodDtype(freq=alias))
    return pandas.arrays.PeriodArray(_own(ordinals), dtype=dtype)


def _build_interval(pandas: Any, left: Any, right: Any, closed: str) -> Any:
    return pandas.arrays.IntervalArray.from_arrays(left, right, closed=closed)


def _build_masked(pandas: Any, values: Any, missing: Any) -> Any:
    kinds = {"b": "BooleanArray", "i": "IntegerArray", "u": "IntegerArray", "f": "FloatingArray"}
    return getattr(pandas.arrays, kinds[values.dtype.kind])(_own(values), _own(missing))


def _string_dtype(pandas: Any, missing: str, storage: Optional[str]) -> Any:
    return pandas.StringDtype(storage, **({"na_value": float("nan")} if missing == "nan" else {}))


def _build_strings(pandas: Any, values: Any, missing: str, storage: Optional[str]) -> Any:
    for kept in (storage, "python"):
        try:
            return pandas.array(values, dtype=_string_dtype(pandas, missing, kept))
        except (ImportError, TypeError, ValueError):
            continue  # there is no pyarrow here; or there are no strings yet whose missing ones are NaN
    values = _own(values)
    values[pandas.isna(values)] = float("nan")
    return values


def _build_text(pandas: Any, ends: Any, data: Any, absent: Any, missing: str, storage: Optional[str]) -> Any:
    values = _arrow_of(ends, data, absent, storage == "pyarrow")
    if values is None:
        return _build_strings(pandas, _strings_of(ends, data, absent), missing, storage)
    if int(pandas.__version__.partition(".")[0]) < 3:
        # Some of these versions take no such text as it is, and some would take it string by string.
        return _build_strings(pandas, values.to_numpy(zero_copy_only=False), missing, storage)
    return _build_strings(pandas, sys.modules["pyarrow"].chunked_array([values]), missing, storage)


def _build_text_objects(pandas: Any, ends: Any, data: Any, absent: Any, missing: str) -> Any:
    arrow = _arrow_of(ends, data, absent, False)
    if arrow is None:
        values = _strings_of(ends, data, absent)
    else:
        # Strings that are the same often are one object, as they mostly were. All of them are looked at only where the
        # first ones promise that: it takes longer than to make that many objects.
        first = arrow.slice(0, 4096)
        if len(first.unique()) * 2 < len(first):
            encoded = arrow.dictionary_encode()
            places = encoded.indices.fill_null(0).to_numpy()
            values = encoded.dictionary.to_numpy(zero_copy_only=False)[places]
        else:
            values = _own(arrow.to_numpy(zero_copy_only=False))
    if absent is not None:
        values[absent] = float("nan") if missing == "nan" else None
    return values


def _arrow_of(ends: Any, data: Any, absent: Any, wanted: bool) -> Any:
    """Text as pyarrow has it, on the memory given; None where pyarrow is not, or not loaded and not ``wanted``."""
    if len(ends) == 0 or ends.dtype != "<i8" or data.dtype != "u1" or (absent is not None and absent.dtype != "?"):
        raise DecodeError("strings came whose places are no numbers")
    ends, data = _kept(ends), _kept(data)
    try:
        pyarrow = library("pyarrow", "text") if wanted or "pyarrow" in sys.modules else None
    except DecodeError:
        pyarrow = None
    if pyarrow is None:
        return None
    valid = None if absent is None else pyarrow.array(~absent).buffers()[1]
    buffers = [valid, pyarrow.py_buffer(ends), pyarrow.py_buffer(data)]
    values = pyarrow.Array.from_buffers(pyarrow.large_string(), len(ends) - 1, buffers)
    values.validate(full=True)
    return values


def _strings_of(ends: Any, data: Any, absent: Any) -> Any:
    numpy = sys.modules["numpy"]
    places, text = ends.tolist(), data.tobytes()
    spans = list(zip(places, places[1:]))  # noqa: RUF007 - pairwise is new in Python 3.10
    if places[0] < 0 or places[-1] > len(text) or any(start > end for start, end in spans):
        raise DecodeError("strings came whose places are not in order")
    values = numpy.empty(len(spans), dtype=object)
    values[:] = [text[start:end].decode() for start, end in spans]
    if absent is not None:
        values[absent] = None
    return values


def _build_arrow(pandas: Any, values: Any) -> Any:
    return pandas.arrays.ArrowExtensionArray(values)


_BUILD: Dict[str, Callable[..., Any]] = {
    "numpy": _build_numpy,
    "objects": _build_numpy,
    "categorical": _build_categorical,
    "zoned": _build_zoned,
    "period": _build_period,
    "interval": _build_interval,
    "masked": _build_masked,
    "strings": _build_strings,
    "text": _build_text,
    "text objects": _build_text_objects,
    "arrow": _build_arrow,
}

# How frequencies are spelled from pandas 2.2 on, and before.
_ALIASES = {
    "ME": "M", "BME": "BM", "SME": "SM", "CBME": "CBM", "QE": "Q", "BQE": "BQ", "YE": "A", "BYE": "BA",
    "YS": "AS", "BYS": "BAS", "h": "H", "bh": "BH", "cbh": "CBH", "min": "T", "s": "S", "ms": "L", "us": "U", "ns": "N",
}  # fmt: skip
_OTHERS = {**_ALIASES, **{old: new for new, old in _ALIASES.items()}, "Y": "A"}


def _with_alias(freq: str, make: Callable[[str], Any]) -> Any:
    """What ``make`` gives for a frequency, by the name that this version of pandas has for it.

    Raises:
        ValueError: it knows neither.
    """
    import re
    import warnings

    found = re.fullmatch(r"(-?\d*)([A-Za-z]+)(.*)", freq)
    names = [freq]
    if found is not None:
        count, alias, rest = found.groups()
        names += [count + other + rest for other in (_OTHERS.get(alias), {"A": "Y"}.get(alias)) if other is not None]
    error: Optional[Exception] = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one that is deprecated has another name
        for name in names:
            try:
                return make(name)
            except (ValueError, Warning) as raised:
                error = error or raised
    raise ValueError(f"pandas here knows no frequency {freq!r}: {error}")


# -- indexes -------------------------------------------------------------------------------------------------------


def _reduce_index(value: Any, carrier: Carrier) -> Reduced:
    try:
        parts: Parts
        kind = type(value).__name__
        if kind == "RangeIndex":
            return restore_index, (("range", value.start, value.stop, value.step), value.name, None)
        if kind == "MultiIndex":
            return restore_multi_index, (list(value.levels), [_codes(one) for one in value.codes], list(value.names))
        parts = _take(value.array)
        freq = getattr(value, "freqstr", None) if kind in ("DatetimeIndex", "TimedeltaIndex") else None
        if (
            parts[0] == "objects"
            and _pandas().api.types.infer_dtype(value, skipna=False) == "string"
            and _is_before_3()
        ):
            parts = ("labels", *parts)
        return restore_index, (parts, value.name, freq)
    except _NoPlace as error:
        raise Unsupported(value, str(error)) from None


def _codes(codes: Any) -> Any:
    numpy = sys.modules["numpy"]
    return numpy.asarray(codes)


def _is_before_3() -> bool:
    return int(_pandas().__version__.partition(".")[0]) < 3


def restore_index(parts: Parts, name: Any, freq: Optional[str]) -> Any:
    """An index of whatever kind its parts ask for."""
    pandas = _pandas()
    if parts[0] == "range":
        return pandas.RangeIndex(*parts[1:], name=name)
    if parts[0] == "labels":
        # Text before pandas 3, which had no other dtype for it.
        return pandas.Index(_build(pandas, parts[1:]).tolist(), name=name)
    values = _build(pandas, parts)
    if parts[0] in ("objects", "text objects"):
        return pandas.Index(values, dtype=object, name=name, tupleize_cols=False)
    index = pandas.Index(values, name=name)
    if freq is not None:
        try:
            _with_alias(freq, lambda alias: setattr(index, "freq", alias))
        except ValueError:
            pass  # a frequency that this version does not know: the times are the same without it
    return index


def restore_multi_index(levels: List[Any], codes: List[Any], names: List[Any]) -> Any:
    """A ``pandas.MultiIndex``."""
    return _pandas().MultiIndex(levels=levels, codes=[_kept(one) for one in codes], names=names)


# -- series and frames ---------------------------------------------------------------------------------------------


def _reduce_series(value: Any, carrier: Carrier) -> Reduced:
    try:
        parts = _take(value.array)
    except _NoPlace as error:
        raise Unsupported(value, str(error)) from None
    return restore_series, (parts, value.index, value.name, dict(value.attrs))


def restore_series(parts: Parts, index: Any, name: Any, attributes: Dict[Any, Any]) -> Any:
    """A ``pandas.Series``."""
    pandas = _pandas()
    values = _build(pandas, parts)
    series = pandas.Series(values, index=index, name=name, dtype=getattr(values, "dtype", None), copy=False)
    series.attrs.update(attributes)
    return series


def _reduce_frame(value: Any, carrier: Carrier) -> Reduced:
    columns: Any
    block = _only_block(value)
    if block is not None:
        columns = block
    else:
        columns = []
        for label, column in value.items():
            try:
                columns.append(_take(column.array))
            except _NoPlace as error:
                raise Unsupported(value, f"column {label!r} is {error}") from None
    return restore_frame, (columns, value.index, value.columns, dict(value.attrs))


def _only_block(value: Any) -> Any:
    """All columns as the one array of numpy that they are, or None if they are more."""
    dtypes = value.dtypes
    if not len(dtypes) or hasattr(dtypes.iloc[0], "na_value") or dtypes.nunique() != 1:
        return None
    block = value.to_numpy(copy=False)
    if block.dtype.hasobject or block.dtype != dtypes.iloc[0] or block.base is None:
        return None
    if not (block.flags.c_contiguous or block.flags.f_contiguous):
        return None
    numpy = sys.modules["numpy"]
    # pandas puts several blocks together in memory of its own.
    return block if numpy.shares_memory(block, value.iloc[:, 0].to_numpy()) or not block.size else None


def restore_frame(columns: Any, index: Any, labels: Any, attributes: Dict[Any, Any]) -> Any:
    """A ``pandas.DataFrame`` on the arrays given."""
    pandas = _pandas()
    if isinstance(columns, list):
        built = {number: _build(pandas, parts) for number, parts in enumerate(columns)}
        for number, values in built.items():
            if len(values) != len(index):
                raise DecodeError(f"column {number} of a frame has {len(values):,} values, its index {len(index):,}")
            if values.dtype.kind == "O" and not hasattr(values.dtype, "na_value"):
                # Else pandas makes of them what it finds.
                built[number] = pandas.Series(values, index=index, dtype=object, copy=False)
        frame = pandas.DataFrame(built, index=index, copy=False)
        frame.columns = labels
    else:
        frame = pandas.DataFrame(_own(columns), index=index, columns=labels, copy=False)
    frame.attrs.update(attributes)
    return frame


# -- arrays and scalars --------------------------------------------------------------------------------------------


def _reduce_extension_array(value: Any, carrier: Carrier) -> Reduced:
    try:
        return restore_extension_array, (_take(value),)
    except _NoPlace as error:
        raise Unsupported(value, str(error)) from None


def restore_extension_array(parts: Parts) -> Any:
    """What ``pandas.array`` makes, a ``Categorical`` among others."""
    pandas = _pandas()
    return pandas.Series(_build(pandas, parts), copy=False).array


def _reduce_timestamp(value: Any, carrier: Carrier) -> Reduced:
    try:
        return restore_timestamp, (value.asm8, None if value.tz is None else _spell_zone(value.tz))
    except _NoPlace as error:
        raise Unsupported(value, str(error)) from None


def restore_timestamp(moment: Any, zone: Any) -> Any:
    """A ``pandas.Timestamp``; the moment is in UTC if there is a zone."""
    stamp = _pandas().Timestamp(moment)
    return stamp if zone is None else stamp.tz_localize("UTC").tz_convert(_zone_of(zone))


def _reduce_timedelta(value: Any, carrier: Carrier) -> Reduced:
    return restore_pandas_timedelta, (value.asm8,)


def restore_pandas_timedelta(duration: Any) -> Any:
    """A ``pandas.Timedelta``."""
    return _pandas().Timedelta(duration)


def _reduce_one_period(value: Any, carrier: Carrier) -> Reduced:
    return restore_period, (value.ordinal, value.freqstr)


def restore_period(ordinal: int, freq: str) -> Any:
    """A ``pandas.Period``."""
    pandas = _pandas()
    return _with_alias(freq, lambda alias: pandas.Period(ordinal=ordinal, freq=alias))


def _reduce_one_interval(value: Any, carrier: Carrier) -> Reduced:
    return restore_interval, (value.left, value.right, value.closed)


def restore_interval(left: Any, right: Any, closed: str) -> Any:
    """A ``pandas.Interval``."""
    return _pandas().Interval(left, right, closed)


def _reduce_missing(value: Any, carrier: Carrier) -> Reduced:
    return restore_missing, ("NaT" if type(value).__name__ == "NaTType" else "NA",)


def restore_missing(name: str) -> Any:
    """``pandas.NaT`` or ``pandas.NA``."""
    return _pandas().NaT if name == "NaT" else _pandas().NA


# -- look-up -------------------------------------------------------------------------------------------------------

RESTORERS: Dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        restore_index, restore_multi_index, restore_series, restore_frame, restore_extension_array, restore_timestamp,
        restore_pandas_timedelta, restore_period, restore_interval, restore_missing,
    )
}  # fmt: skip
BY_NAME: Dict[Tuple[str, str], Reducer] = {}
_INDEXES = (
    "Index", "RangeIndex", "MultiIndex", "DatetimeIndex", "TimedeltaIndex", "PeriodIndex", "IntervalIndex",
    "CategoricalIndex", "Int64Index", "UInt64Index", "Float64Index",
)  # fmt: skip
_ARRAYS = (
    "Categorical", "DatetimeArray", "TimedeltaArray", "PeriodArray", "IntervalArray", "IntegerArray", "FloatingArray",
    "BooleanArray", "StringArray", "StringArrayNumpySemantics", "ArrowStringArray", "ArrowStringArrayNumpySemantics",
    "ArrowExtensionArray", "SparseArray", "NumpyExtensionArray", "PandasArray",
)  # fmt: skip
# The modules that these are in differ between versions; their names do not.
_BY_QUALNAME: Dict[str, Reducer] = {
    "DataFrame": _reduce_frame,
    "Series": _reduce_series,
    **dict.fromkeys(_INDEXES, _reduce_index),
    **dict.fromkeys(_ARRAYS, _reduce_extension_array),
    "Timestamp": _reduce_timestamp,
    "Timedelta": _reduce_timedelta,
    "Period": _reduce_one_period,
    "Interval": _reduce_one_interval,
    "NaTType": _reduce_missing,
    "NAType": _reduce_missing,
}


def reducer_of(cls: type) -> Optional[Reducer]:
    """For the classes of pandas, wherever this version has them."""
    return _BY_QUALNAME.get(cls.__qualname__)
