# SPDX-License-Identifier: Apache-2.0
"""Plain memory of the standard library: memoryview, mmap.mmap, array.array.

A memoryview arrives as a memoryview of the same format and shape, and can be written to if the one that was sent
could; where it was strided, its items lie in a row now. An mmap arrives as a memoryview of its bytes: the file behind
it stays where it is. An ``array.array`` arrives as one.

What does not belong here: ``bytes`` and ``bytearray`` (``values``), arrays of libraries (``arrays``).
"""

from __future__ import annotations

import sys

from .adapters import Unsupported
from .arrays import bytes_that_came
from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Tuple

    from .arrays import Carrier, Reduced, Reducer

# Formats of which memoryview itself can read the items, each of the size that this machine gives it.
_NATIVE = frozenset("?cbBhHiIlLqQnNfd")
_SIGNED = {1: "b", 2: "h", 4: "i", 8: "q"}
_NATIVE_ORDER = "<" if sys.byteorder == "little" else ">"


def address_of(view: memoryview) -> int:
    """Where the memory of a view begins whose items lie in a row, whether or not it can be written to."""
    import ctypes

    # A ``Py_buffer`` of Python's C API: eleven words at most, the first of which is the address.
    buffer = (ctypes.c_void_p * 16)()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    address = buffer[0] or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def store_bytes(view: memoryview, carrier: Carrier, address: int = 0) -> Any:
    """What stands for the bytes of a view, to be returned among a reducer's arguments."""
    nbytes = view.nbytes
    if nbytes < carrier.inline:
        return view.tobytes()
    if not view.c_contiguous:

        def fill_in_order(memory: memoryview) -> None:
            memory[:] = view.tobytes()  # memoryview has no other way

        return carrier.store(nbytes, fill_in_order)
    address = address or address_of(view)
    found = carrier.find(address, nbytes)
    if found is not None:
        return found
    flat = view.cast("B")

    def fill(memory: memoryview) -> None:
        memory[:] = flat

    return carrier.store(nbytes, fill, address, lambda: flat)


def _reduce_memoryview(value: memoryview, carrier: Carrier) -> Reduced:
    try:
        form, shape = value.format, value.shape
    except ValueError:
        raise Unsupported(value, "which was released") from None
    spelled = _spell_format(form, value.itemsize)
    if spelled is None:
        raise Unsupported(
            value, f"of format {form!r}, whose items Python cannot read; numpy.asarray(x) or x.cast('B') can be passed"
        )
    if value.ndim > 1 and not value.nbytes:
        raise Unsupported(value, f"of shape {shape}, which Python cannot make; without items, it takes one dimension")
    return restore_memoryview, (spelled, shape, value.readonly, store_bytes(value, carrier))


def _spell_format(form: str, itemsize: int) -> Any:
    """The format in Python's own letters, or None if it has none for it."""
    order, letter = (form[0], form[1:]) if form[:1] in tuple("@=<>!") else ("", form)
    if letter not in _NATIVE or not letter:
        return None
    if order in ("", "@"):
        return letter
    if order not in ("=", _NATIVE_ORDER) and itemsize > 1:
        return None
    # With these, "l" has 4 bytes everywhere; with ctypes, though, it has 8.
    if letter in "bhilqn":
        return _SIGNED.get(itemsize)
    return _SIGNED[itemsize].upper() if letter in "BHILQN" else letter


def restore_memoryview(form: str, shape: Tuple[int, ...], readonly: bool, buffer: Any) -> memoryview:
    """A view of the memory given."""
    if form not in _NATIVE:
        raise DecodeError(f"a memoryview of format {form!r}")
    memory = bytes_that_came(buffer)
    view = memoryview(bytearray(memory) if type(buffer) is bytes and not readonly else memory).cast("B")
    if form != "B" or len(shape) != 1:
        cast: Any = view.cast
        view = cast(form, shape) if len(shape) != 1 else cast(form)
    if view.shape != tuple(shape):
        raise DecodeError(f"a memoryview of shape {shape} and format {form!r} does not have {view.nbytes} bytes")
    return view.toreadonly() if readonly else view


def _reduce_mmap(value: Any, carrier: Carrier) -> Reduced:
    try:
        view = memoryview(value)
    except ValueError:
        raise Unsupported(value, "which was closed") from None
    return restore_memoryview, ("B", view.shape, view.readonly, store_bytes(view, carrier))


def _reduce_array(value: Any, carrier: Carrier) -> Reduced:
    view = memoryview(value).cast("B")
    return restore_array, (value.typecode, value.itemsize, store_bytes(view, carrier, value.buffer_info()[0]))


def restore_array(typecode: str, itemsize: int, buffer: Any) -> Any:
    """An ``array.array``, which has memory of its own: so this is a copy."""
    from array import array, typecodes

    if typecode not in typecodes:  # "w" is new in Python 3.13, and "u" was what it was before
        typecode = {"w": "u", "u": "w"}.get(typecode, typecode)
    made: Any = array(typecode)
    if made.itemsize != itemsize:
        raise DecodeError(f"an array of {typecode!r} with items of {itemsize} bytes; here they have {made.itemsize}")
    made.frombytes(bytes_that_came(buffer))
    return made


RESTORERS: Dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (restore_memoryview, restore_array)
}
BY_NAME: Dict[Tuple[str, str], Reducer] = {
    ("builtins", "memoryview"): _reduce_memoryview,
    ("mmap", "mmap"): _reduce_mmap,
    ("array", "array"): _reduce_array,
}
