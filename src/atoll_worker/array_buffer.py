# SPDX-License-Identifier: Apache-2.0
"""Arrays of a library that this side does not have: bytes, and what they are.

They can be read through the buffer protocol and the array interface, and passed on: who gets one gets the array that it
was. What does not belong here: arithmetic, which is what the libraries are for.
"""

from __future__ import annotations

from .arrays import bytes_that_came, restore_ndarray, restore_numpy_scalar
from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Literal, Optional, Sequence, Tuple

    from .arrays import Carrier, Layout, Reduced, Reducer


class ArrayBuffer:
    """An array that came to a side without the library it is of.

    Attributes:
        origin: the library that it is of, ``"numpy"`` or ``"torch"``.
        dtype: what an item is, as numpy spells it: ``"<f4"``, ``"<M8[ns]"``, ``"|V16"`` for a structure; a name such as
            ``"bfloat16"`` where numpy has none.
        shape: lengths of the axes.
        strides: bytes from an item to the next, for each axis.
        itemsize: bytes of an item.
        data: the bytes, as a ``memoryview`` of one axis; it keeps the memory alive.
        offset: where in ``data`` the first item begins.
    """

    __slots__ = (
        "__weakref__",
        "_descr",
        "_pass_on",
        "data",
        "dtype",
        "itemsize",
        "offset",
        "origin",
        "shape",
        "strides",
    )

    def __init__(
        self,
        library: str,
        dtype: str,
        itemsize: int,
        shape: Sequence[int],
        strides: Sequence[int],
        data: Any,
        offset: int,
        pass_on: Callable[[Carrier], Reduced],
        descr: Any = None,
    ) -> None:
        self.origin = library
        self.dtype = dtype
        self.itemsize = itemsize
        self.shape = tuple(shape)
        self.strides = tuple(strides)
        self.data = memoryview(data).cast("B")
        self.offset = offset
        self._pass_on = pass_on
        self._descr = descr
        if len(self.shape) != len(self.strides):
            raise DecodeError(f"an array of shape {self.shape} and strides {self.strides}")
        lowest = highest = offset
        for length, stride in zip(self.shape, self.strides):
            if length < 0:
                raise DecodeError(f"an array of shape {self.shape}")
            lowest += min(0, stride * (length - 1))
            highest += max(0, stride * (length - 1))
        if 0 not in self.shape and (lowest < 0 or highest + itemsize > self.data.nbytes):
            raise DecodeError(
                f"an array of shape {self.shape}, dtype {dtype} and strides {self.strides} does not lie in "
                f"{self.data.nbytes} bytes"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        size = self.itemsize
        for length in self.shape:
            size *= length
        return size

    @property
    def __array_interface__(self) -> Dict[str, Any]:
        typestr = self.dtype if self.dtype[0] in "<>|=" else f"|V{self.itemsize}"
        interface = {
            "version": 3,
            "shape": self.shape,
            "typestr": typestr,
            "strides": self.strides,
            "data": self.data,
            "offset": self.offset,
        }
        if self._descr is not None:
            interface["descr"] = self._descr
        return interface

    def view(self) -> memoryview:
        """The items, as a ``memoryview`` of their format and the array's shape.

        Raises:
            ValueError: they have no format of this platform's, or do not lie one after another.
        """
        form: Any = _native_format(self.dtype)
        if form is None:
            raise ValueError(f"items of dtype {self.dtype} have no format that a memoryview knows")
        if self.strides != _strides_of(self.shape, self.itemsize, "C"):
            raise ValueError(f"an array with strides {self.strides} does not lie in a row")
        items = self.data[self.offset : self.offset + self.nbytes]
        # One with an axis of no length is one of no items.
        view: memoryview = items.cast(form) if 0 in self.shape else items.cast(form, self.shape)
        return view

    def __repr__(self) -> str:
        return f"<ArrayBuffer: {self.origin} array of shape {self.shape} and dtype {self.dtype}>"


def _native_format(dtype: str) -> Optional[str]:
    import struct
    import sys

    if dtype[:1] not in ("|", "<" if sys.byteorder == "little" else ">"):
        return None
    if dtype[1:] == "b1":
        return "?"
    forms = {"i": "bhilq", "u": "BHILQ", "f": "fd"}.get(dtype[1:2], "")
    return next((form for form in forms if dtype[2:] == str(struct.calcsize(form))), None)


def _strides_of(shape: Sequence[int], itemsize: int, order: str) -> Tuple[int, ...]:
    strides = [0] * len(shape)
    step = itemsize
    for axis in range(len(shape)) if order == "F" else range(len(shape) - 1, -1, -1):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)


def _describe(spelled: Any) -> Tuple[str, int, Any]:
    """dtype, bytes of an item, and its fields as the array interface has them or None, of a dtype spelled."""
    if isinstance(spelled, str):
        size = int(spelled[2:].partition("[")[0])
        return spelled, size * 4 if spelled[1] == "U" else size, None
    what, *parts = spelled
    if what == "long":
        return _describe(parts[0])
    if what == "ml_dtypes":
        name, itemsize = parts
        return name, int(itemsize), None
    if what == "record":
        return _describe(parts[0])
    if what == "subarray":
        name, itemsize, descr = _describe(parts[0])
        for length in parts[1]:
            itemsize *= length
        return name, itemsize, descr
    if what == "struct":
        names, formats, offsets, _, itemsize, _ = parts
        return f"|V{itemsize}", itemsize, _describe_fields(names, formats, offsets, itemsize)
    raise DecodeError(f"{what!r} is no kind of dtype")


def _describe_fields(names: Any, formats: Any, offsets: Any, itemsize: int) -> Any:
    """The fields of a structure, as the array interface has them; None if they overlap, which that cannot say."""
    descr: List[Tuple[Any, ...]] = []
    end = 0
    for offset, name, spelled in sorted(zip(offsets, names, formats), key=lambda field: int(field[0])):
        inner, shape = spelled, ()
        if not isinstance(spelled, str) and spelled[0] == "subarray":
            _, inner, shape = spelled
        if offset < end:
            return None
        if offset > end:
            descr.append(("", f"|V{offset - end}"))
        dtype, size, fields = _describe(inner)
        kind = fields if fields is not None else dtype if dtype[0] in "<>|" else f"|V{size}"
        descr.append((name, kind, tuple(shape)) if shape else (name, kind))
        end = offset + _size(shape, size)
    if end < itemsize:
        descr.append(("", f"|V{itemsize - end}"))
    return descr


def of_ndarray(spelled: Any, shape: Tuple[int, ...], layout: Layout, buffer: Any) -> ArrayBuffer:
    """What ``restore_ndarray`` gives where numpy is not installed."""
    dtype, itemsize, descr = _describe(spelled)
    offset, strides = (0, _strides_of(shape, itemsize, layout)) if isinstance(layout, str) else layout
    data = bytes_that_came(buffer).cast("B")
    if isinstance(layout, str) and _size(shape, itemsize) != data.nbytes:
        raise DecodeError(f"an array of shape {shape} and dtype {dtype} does not have {data.nbytes} bytes")

    def pass_on(carrier: Carrier) -> Reduced:
        return restore_ndarray, (spelled, shape, layout, carry(carrier, data))

    return ArrayBuffer("numpy", dtype, itemsize, shape, strides, data, offset, pass_on, descr)


def _size(shape: Sequence[int], itemsize: int) -> int:
    for length in shape:
        itemsize *= length
    return itemsize


def of_scalar(spelled: Any, data: bytes) -> Any:
    """What ``restore_numpy_scalar`` gives where numpy is not installed."""
    dtype, itemsize, descr = _describe(spelled)
    if type(data) is not bytes or itemsize != len(data):
        raise DecodeError(f"{len(data)} bytes are no scalar of dtype {dtype}")
    if isinstance(spelled, str):
        kind = dtype[1]
        order: Literal["big", "little"] = "big" if dtype[0] == ">" else "little"
        if kind == "S":
            return data.rstrip(b"\0")
        if kind == "U":
            return data.decode("utf-32-be" if order == "big" else "utf-32-le", "surrogatepass").rstrip("\0")
        if kind == "b":
            return data != b"\0"
        if kind == "i" or kind == "u":
            return int.from_bytes(data, order, signed=kind == "i")
        form = _FLOATS.get(dtype[1:])
        if form is not None:
            import struct

            parts = struct.unpack((">" if order == "big" else "<") + form, data)
            return complex(*parts) if kind == "c" else parts[0]
    return ArrayBuffer(
        "numpy", dtype, itemsize, (), (), data, 0, lambda carrier: (restore_numpy_scalar, (spelled, data)), descr
    )


_FLOATS = {"f2": "e", "f4": "f", "f8": "d", "c8": "ff", "c16": "dd"}


def carry(carrier: Carrier, data: memoryview) -> Any:
    """What stands for these bytes in what a reducer returns."""
    nbytes = data.nbytes
    if nbytes < carrier.inline or not nbytes:
        return data.tobytes()
    address = 0
    if not data.readonly:
        import ctypes

        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        found = carrier.find(address, nbytes)
        if found is not None:
            return found

    def fill(memory: memoryview) -> None:
        memory[:] = data

    return carrier.store(nbytes, fill, address, lambda: data)


def _reduce_array_buffer(value: ArrayBuffer, carrier: Carrier) -> Reduced:
    return value._pass_on(carrier)


RESTORERS: Dict[str, Callable[..., Any]] = {}
BY_NAME: Dict[Tuple[str, str], Reducer] = {(__name__, "ArrayBuffer"): _reduce_array_buffer}
