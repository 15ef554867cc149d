# SPDX-License-Identifier: Apache-2.0
"""Arrays: values that are mostly bytes, and cross as a description of them beside the bytes themselves.

As in ``adapters``, each type has a ``_reduce_*`` and a ``restore_*``, found by name, so that no library is imported for
a type nobody uses; and what is rebuilt is made by the receiver's own library, whatever its version. What is different:
a reducer is given a ``Carrier``, which takes the bytes. Small ones go inside the payload (``bytes``), others beside it;
a restorer gets bytes-like memory either way, and what it makes keeps that memory alive.

What does not belong here: where the memory comes from (``values``, ``segments``).
"""

from __future__ import annotations

import sys

from .adapters import Unsupported
from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Union

    Reduced = Tuple[Callable[..., Any], Tuple[Any, ...]]
    Reducer = Callable[[Any, "Carrier"], Reduced]
    # "C" or "F": the bytes are those of the array in this order. Else where the first item is, and the strides.
    Layout = Union[str, Tuple[int, Tuple[int, ...]]]


class Carrier:
    """Takes the bytes of arrays while one value is encoded.

    Attributes:
        inline: what has fewer bytes than this goes inside the payload; a reducer gives it as ``bytes``.
        notes: what reducers remember while one value is encoded. What is in it lives until then.
    """

    inline = 0
    notes: Dict[Any, Any]

    def find(self, address: int, nbytes: int) -> Any:
        """What stands for this memory if it lies in a segment already, and need not be copied; else None."""
        raise NotImplementedError

    def store(
        self,
        nbytes: int,
        fill: Callable[[memoryview], object],
        address: int = 0,
        raw: Optional[Callable[[], Any]] = None,
    ) -> Any:
        """What stands for a copy of ``nbytes`` bytes, to be returned among the reducer's arguments at once.

        Args:
            nbytes: how many there are.
            fill: writes them into the memory it is given, a writable view of bytes; called before encoding ends, if at
                all.
            address: of the bytes, if they lie in a row: the same ones, stored again, are carried once.
            raw: gives the bytes themselves as a bytes-like object, if they lie in a row.
        """
        raise NotImplementedError

    def again(self) -> bool:
        """Ask for the value to be encoded once more from its start, for the sake of what was noted too late to be heeded.

        Returns:
            False if this is the second time already.
        """
        raise NotImplementedError


def library(name: str, what: str) -> Any:
    """The library that a value which came is of.

    Raises:
        DecodeError: this side does not have it.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise DecodeError(
            f"{what} came, but {name} cannot be imported by {sys.executable} ({error}); "
            f"add {name.partition('.')[0]} to the dependencies of this side"
        ) from None


# -- numpy ---------------------------------------------------------------------------------------------------------


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise DecodeError(
            "a numpy array came, but numpy cannot be imported by "
            f"{sys.executable} ({error}); add numpy to the dependencies of this side"
        ) from None
    return numpy


def _spell_dtype(dtype: Any, owner: object) -> Any:
    """A dtype in words that every numpy understands: a string, or (names, formats, offsets, itemsize)."""
    if dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        formats = [_spell_dtype(field[0], owner) for field in fields]
        return (list(dtype.names), formats, [field[1] for field in fields], dtype.itemsize)
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ("subarray", _spell_dtype(base, owner), shape)
    if dtype.hasobject or dtype.kind not in "biufcSUVMm" or (dtype.kind == "V" and dtype.type.__name__ != "void"):
        raise Unsupported(owner, f"of dtype {dtype}")
    return dtype.str


def _read_dtype(numpy: Any, spelled: Any) -> Any:
    if isinstance(spelled, str):
        return numpy.dtype(spelled)
    if len(spelled) == 3:
        return numpy.dtype((_read_dtype(numpy, spelled[1]), tuple(spelled[2])))
    names, formats, offsets, itemsize = spelled
    formats = [_read_dtype(numpy, one) for one in formats]
    return numpy.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})


def _reduce_ndarray(value: Any, carrier: Carrier) -> Reduced:
    dtype = value.dtype
    if dtype.kind == "O":
        return restore_object_ndarray, (value.shape, value.ravel().tolist())
    spelled = _spell_dtype(dtype, value)
    if dtype.itemsize == 0:
        raise Unsupported(value, f"of dtype {dtype}, whose items have no bytes")
    flags = value.flags
    order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    nbytes = value.nbytes
    if nbytes < carrier.inline:
        return restore_ndarray, (spelled, value.shape, order, value.tobytes(order))
    address = value.__array_interface__["data"][0]
    if flags.c_contiguous or flags.f_contiguous:
        buffer = carrier.find(address, nbytes)
        if buffer is None:
            buffer = carrier.store(
                nbytes, lambda memory: _copy(memory, value, order), address, lambda: _raw(value, order)
            )
        return restore_ndarray, (spelled, value.shape, order, buffer)
    # Every so many bytes of something larger: where that is in a segment, they need not be brought together.
    lowest = sum(min(0, stride * (length - 1)) for stride, length in zip(value.strides, value.shape))
    highest = sum(max(0, stride * (length - 1)) for stride, length in zip(value.strides, value.shape))
    buffer = carrier.find(address + lowest, highest - lowest + dtype.itemsize)
    if buffer is not None:
        return restore_ndarray, (spelled, value.shape, (-lowest, value.strides), buffer)
    return restore_ndarray, (spelled, value.shape, "C", carrier.store(nbytes, lambda memory: _copy(memory, value, "C")))


def _raw(value: Any, order: str) -> Any:
    # As bytes, because not every dtype (datetime64) offers the buffer protocol itself.
    return (value.T if order == "F" else value).reshape(-1).view("u1")


def _copy(memory: memoryview, value: Any, order: str) -> None:
    numpy = sys.modules["numpy"]
    # With the interpreter lock released, where it is worth it.
    numpy.copyto(numpy.frombuffer(memory, value.dtype).reshape(value.shape, order=order), value, casting="no")


def restore_ndarray(spelled: Any, shape: Tuple[int, ...], layout: Layout, buffer: Any) -> Any:
    """An array on the memory given, writable if that is."""
    numpy = _numpy()
    dtype = _read_dtype(numpy, spelled)
    if dtype.hasobject or dtype.itemsize == 0:
        raise DecodeError(f"bytes cannot be read as items of dtype {dtype}")
    count = 1
    for length in shape:
        if length < 0:
            raise DecodeError(f"an array of shape {shape}")
        count *= length
    size = memoryview(buffer).nbytes
    if isinstance(layout, str):
        if count * dtype.itemsize != size:
            raise DecodeError(f"an array of shape {shape} and dtype {dtype} does not have {size} bytes")
        array = numpy.frombuffer(buffer, dtype, count) if size else numpy.empty(count, dtype)
        return array.reshape(shape, order=layout)
    # What is outside of the buffer, numpy refuses.
    offset, strides = layout
    return numpy.ndarray(shape, dtype, buffer, offset, strides)


def restore_own_ndarray(spelled: Any, shape: Tuple[int, ...], layout: Layout, buffer: Any) -> Any:
    """An array that may be written to."""
    return restore_ndarray(spelled, shape, layout, bytearray(buffer) if type(buffer) is bytes else buffer)


def restore_read_only_ndarray(spelled: Any, shape: Tuple[int, ...], layout: Layout, buffer: Any) -> Any:
    """An array that may not."""
    array = restore_ndarray(spelled, shape, layout, buffer)
    array.flags.writeable = False
    return array


def restore_object_ndarray(shape: Tuple[int, ...], items: List[Any]) -> Any:
    """An array of objects, which crossed one by one."""
    numpy = _numpy()
    array = numpy.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(shape)


def _reduce_numpy_scalar(value: Any, carrier: Carrier) -> Reduced:
    # An empty string has no bytes by its dtype, yet some when asked for them.
    return restore_numpy_scalar, (_spell_dtype(value.dtype, value), value.tobytes()[: value.dtype.itemsize])


def restore_numpy_scalar(spelled: Any, data: bytes) -> Any:
    """A scalar of numpy."""
    numpy = _numpy()
    dtype = _read_dtype(numpy, spelled)
    if dtype.hasobject or dtype.itemsize != len(data):
        raise DecodeError(f"{len(data)} bytes are no scalar of dtype {dtype}")
    return numpy.frombuffer(data, dtype)[0] if data else dtype.type()


# -- look-up -------------------------------------------------------------------------------------------------------

RESTORERS: Dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (restore_ndarray, restore_object_ndarray, restore_numpy_scalar)
}
# What to call instead where arrays are the receiver's to write to, and where they are not.
OWN: Dict[str, Callable[..., Any]] = {"restore_ndarray": restore_own_ndarray}
READ_ONLY: Dict[str, Callable[..., Any]] = {"restore_ndarray": restore_read_only_ndarray}

_BY_NAME: Dict[Tuple[str, str], Reducer] = {
    ("numpy", "ndarray"): _reduce_ndarray,
    ("numpy", "memmap"): _reduce_ndarray,
}
# The same types where another version of their library keeps them.
_MOVED = {
    "numpy.core.memmap": "numpy",
    "numpy._core.memmap": "numpy",
}

# Rooms of other libraries, by library or type; loaded when the first of its values comes. Each has ``RESTORERS`` and,
# for the types, ``BY_NAME``, as above; for what has no fixed name, ``reducer_of``.
_ROOMS: Dict[str, str] = {
    "torch": "tensors",
    "pyarrow": "tables",
    "polars": "tables",
    "pandas": "frames",
    "PIL": "images",
    "array": "buffers",
    "mmap": "buffers",
    "builtins.memoryview": "buffers",
}
_PACKAGE = __name__.rpartition(".")[0]

# The restorers of the rooms loaded so far.
room_restorers: Set[Callable[..., Any]] = set()
_found: Dict[type, Reducer] = {}


def array_reducer_of(cls: type) -> Optional[Reducer]:
    """How arrays of this very class are taken apart, or None if it is not one of an array."""
    reducer = _found.get(cls)
    if reducer is None:
        module = cls.__module__
        if type(module) is not str:
            return None
        module = _MOVED.get(module, module)
        place = module, cls.__qualname__
        reducer = _BY_NAME.get(place)
        if reducer is None:
            room = _ROOMS.get(module.partition(".")[0]) or _ROOMS.get(f"{module}.{cls.__qualname__}")
            if room is not None:
                loaded = _load(room)
                reducer = loaded.BY_NAME.get(place)
                if reducer is None and hasattr(loaded, "reducer_of"):
                    reducer = loaded.reducer_of(cls)
            elif module == "numpy":
                numpy = sys.modules.get("numpy")
                if numpy is not None and issubclass(cls, numpy.generic):
                    reducer = _reduce_numpy_scalar
        if reducer is not None:
            _found[cls] = reducer
    return reducer


def room_restorer(module: str, name: str) -> Optional[Callable[..., Any]]:
    """The restorer of that name in a room of another library, or None if there is none."""
    package, _, room = module.rpartition(".")
    if package != _PACKAGE or room not in _ROOMS.values():
        return None
    restorer: Optional[Callable[..., Any]] = _load(room).RESTORERS.get(name)
    return restorer


def _load(room: str) -> Any:
    from importlib import import_module

    loaded = import_module(f"{_PACKAGE}.{room}")
    room_restorers.update(loaded.RESTORERS.values())
    return loaded
