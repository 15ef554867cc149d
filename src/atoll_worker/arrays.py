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
from mmap import mmap

from .adapters import Unsupported
from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union

    Reduced = Tuple[Callable[..., Any], Tuple[Any, ...]]
    Reducer = Callable[[Any, "Carrier"], Reduced]
    # "C" or "F": the bytes are those of the array in this order. Else where in them the first item is, and the strides.
    Layout = Union[str, Tuple[int, Tuple[int, ...]]]


class Shared:
    """An array in a segment, to be lent so that the other side can write to it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Carrier:
    """Takes the bytes of arrays while one value is encoded.

    Attributes:
        inline: what has fewer bytes than this goes inside the payload; a reducer gives it as ``bytes``.
        is_sharing: what is reduced may be written to by the other side, so its memory must be found in a segment.
        notes: what reducers remember while one value is encoded. What is in it lives until then.
    """

    inline = 0
    is_sharing = False
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

    def share(self, value: Any) -> Any:
        """Reduce an array that the other side may write to, and whose memory must therefore be found in a segment."""
        raise NotImplementedError

    def again(self) -> bool:
        """Ask for the value to be encoded once more from its start, because something was noted too late to be heeded.

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


def installed(name: str, what: str) -> Any:
    """The library that a value which came is of; None if this side does not have it.

    Raises:
        DecodeError: it has, but that cannot be imported.
    """
    # Asking the import system each time would take as long as all the rest.
    known = sys.modules.get(name)
    if known is not None and not getattr(known.__spec__, "_initializing", False):
        return known
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None
        raise DecodeError(f"{what} came, but {name} cannot be imported by {sys.executable} ({error})") from error


# -- numpy ---------------------------------------------------------------------------------------------------------


def _spell_dtype(dtype: Any, owner: object) -> Any:
    """A dtype in words that every numpy understands: a string, or a tuple that begins with what it is.

    Its ``metadata`` does not cross.
    """
    known = _spelled.get(dtype)
    if known is not None:
        return known
    spelled = _spell(dtype, owner)
    if type(spelled) is str and len(_spelled) < 256:
        _spelled[dtype] = spelled
    return spelled


_spelled: Dict[Any, str] = {}


def _spell(dtype: Any, owner: object) -> Any:
    kind = dtype.kind
    if kind == "T":
        raise Unsupported(owner, f"of dtype {dtype}; pass x.astype(object) or x.astype(str)")
    module = dtype.type.__module__
    if module != "numpy":
        name = dtype.type.__name__
        if module == "ml_dtypes":
            return ("ml_dtypes", name, dtype.itemsize)
        if dtype.names is None or name != "record":  # some versions say that records are of numpy.rec
            raise Unsupported(owner, f"of dtype {dtype}, which numpy has from {module}")
    if dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        titles = [field[2] if len(field) > 2 else None for field in fields]
        spelled = (
            "struct",
            list(dtype.names),
            [_spell_dtype(field[0], owner) for field in fields],
            [field[1] for field in fields],
            titles if any(title is not None for title in titles) else None,
            dtype.itemsize,
            dtype.isalignedstruct,
        )
        return ("record", spelled) if dtype.type.__name__ == "record" else spelled
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ("subarray", _spell_dtype(base, owner), shape)
    if kind not in "biufcSUVMm":
        of_objects = ", whose items are Python objects; alone in an array, not as a field, they can cross"
        raise Unsupported(owner, f"of dtype {dtype}{of_objects if kind == 'O' else ''}")
    if dtype.char in "gG":
        # As long as on this platform; and what its bytes mean depends on that too.
        return ("long", dtype.str, sys.modules["numpy"].finfo(dtype.type).nmant)
    return dtype.str


def _read_dtype(numpy: Any, spelled: Any) -> Any:
    if isinstance(spelled, str):
        return numpy.dtype(spelled)
    what, *parts = spelled
    if what == "struct":
        names, formats, offsets, titles, itemsize, aligned = parts
        fields = {
            "names": names,
            "formats": [_read_dtype(numpy, one) for one in formats],
            "offsets": offsets,
            "itemsize": itemsize,
        }
        if titles is not None:
            fields["titles"] = titles
        return numpy.dtype(fields, align=aligned)
    if what == "record":
        return numpy.dtype((numpy.record, _read_dtype(numpy, parts[0])))
    if what == "subarray":
        return numpy.dtype((_read_dtype(numpy, parts[0]), tuple(parts[1])))
    if what == "long":
        name, bits = parts
        dtype = numpy.dtype("G" if "c" in name else "g").newbyteorder(name[0])
        if dtype.str != name or numpy.finfo(dtype.type).nmant != bits:
            raise DecodeError(f"an array of {name} with {bits} bits of mantissa came, which numpy has not on this side")
        return dtype
    if what == "ml_dtypes":
        return _read_ml_dtype(numpy, parts[0])
    raise DecodeError(f"{what!r} is no kind of dtype")


def _read_ml_dtype(numpy: Any, name: str) -> Any:
    ml_dtypes = library("ml_dtypes", f"an array of dtype {name}")
    scalar = getattr(ml_dtypes, name, None)
    if not isinstance(scalar, type) or not issubclass(scalar, numpy.generic):
        raise DecodeError(
            f"an array of dtype {name} came, which ml_dtypes {ml_dtypes.__version__} of this side does not have"
        )
    return numpy.dtype(scalar)


def _reduce_ndarray(value: Any, carrier: Carrier) -> Reduced:
    dtype = value.dtype
    flags = value.flags
    if dtype.kind == "O":
        order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
        return restore_object_ndarray, (value.shape, value.ravel(order).tolist(), order)
    spelled = _spell_dtype(dtype, value)
    if dtype.itemsize == 0:
        raise Unsupported(value, f"of dtype {dtype}, whose items have no bytes")
    if flags.c_contiguous:
        order = "C"
    elif flags.f_contiguous:
        order = "F"
    else:
        return _reduce_strided(value, spelled, carrier)
    nbytes = value.nbytes
    if nbytes < carrier.inline or not nbytes:
        return restore_ndarray, (spelled, value.shape, order, value.tobytes(order))
    address = value.__array_interface__["data"][0]
    return restore_ndarray, (spelled, value.shape, order, _carry(carrier, value, address, nbytes))


def _reduce_strided(value: Any, spelled: Any, carrier: Carrier) -> Reduced:
    """An array whose items do not lie one after another, in C's order or Fortran's."""
    shape, strides, itemsize = value.shape, value.strides, value.dtype.itemsize
    # What it would be without bytes between the items: its axes in the same order, and those without steps 1 long.
    packed, size = [0] * len(shape), itemsize
    for axis in sorted(range(len(shape)), key=lambda axis: (abs(strides[axis]), -axis)):
        if strides[axis]:
            packed[axis] = size
            size *= shape[axis]
    offset, span = _extent(shape, strides, itemsize)
    address = value.__array_interface__["data"][0] - offset
    is_small = min(span, size) < carrier.inline
    if span <= size:
        # Axes are swapped or reversed, or bytes are items more than once, as of a broadcast array or sliding windows.
        buffer = _raw(value, address, span).tobytes() if is_small else _carry(carrier, value, address, span)
        return restore_ndarray, (spelled, shape, (offset, strides), buffer)
    if not is_small:
        # Where all of it is in a segment, they need not be brought together.
        buffer = carrier.find(address, span)
        if buffer is not None:
            return restore_ndarray, (spelled, shape, (offset, strides), buffer)
    core = value[tuple(slice(None) if stride else slice(0, 1) for stride in strides)]

    def fill(memory: memoryview) -> None:
        numpy = sys.modules["numpy"]
        dtype, source = core.dtype, core
        if dtype.names is not None:
            # As bytes: numpy would leave out what is between fields, and with it what the memory held before.
            dtype = numpy.dtype(f"V{itemsize}")
            source = core.view(dtype)
        # With the interpreter lock released, where it is worth it.
        numpy.copyto(numpy.ndarray(core.shape, dtype, memory, 0, packed), source, casting="no")

    if is_small:
        memory = bytearray(size)
        fill(memoryview(memory))
        return restore_ndarray, (spelled, shape, (0, tuple(packed)), bytes(memory))
    return restore_ndarray, (spelled, shape, (0, tuple(packed)), carrier.store(size, fill))


def _extent(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> Tuple[int, int]:
    """Where in its memory an array's first item is, and how many bytes that memory has; there are some items."""
    before = after = 0
    for length, stride in zip(shape, strides):
        if stride < 0:
            before -= stride * (length - 1)
        else:
            after += stride * (length - 1)
    return before, before + after + itemsize


class _Memory:
    """Bytes that lie somewhere in an array's memory, for numpy."""

    def __init__(self, owner: Any, address: int, nbytes: int) -> None:
        self.owner = owner
        self.__array_interface__ = {"version": 3, "shape": (nbytes,), "typestr": "|u1", "data": (address, True)}


def _raw(value: Any, address: int, nbytes: int) -> Any:
    # As bytes, because not every dtype (datetime64) offers the buffer protocol itself.
    return sys.modules["numpy"].asarray(_Memory(value, address, nbytes))


def _carry(carrier: Carrier, value: Any, address: int, nbytes: int) -> Any:
    found = carrier.find(address, nbytes)
    if found is not None:
        return found

    def fill(memory: memoryview) -> None:
        numpy = sys.modules["numpy"]
        # With the interpreter lock released, where it is worth it.
        numpy.copyto(numpy.frombuffer(memory, "u1"), _raw(value, address, nbytes))

    return carrier.store(nbytes, fill, address, lambda: memoryview(_raw(value, address, nbytes)))


def restore_ndarray(spelled: Any, shape: Tuple[int, ...], layout: Layout, buffer: Any) -> Any:
    """An array on the memory given, writable if that is.

    Where the same bytes are items more than once, as in a broadcast array, it is read-only, as it is with numpy.
    Where numpy is not installed, it is an ``ArrayBuffer``.
    """
    numpy = installed("numpy", "a numpy array")
    if numpy is None:
        return _load("array_buffer").of_ndarray(spelled, shape, layout, buffer)
    dtype = numpy.dtype(spelled) if type(spelled) is str else _read_dtype(numpy, spelled)
    itemsize = dtype.itemsize
    if itemsize == 0 or dtype.hasobject:
        raise DecodeError(f"bytes cannot be read as items of dtype {dtype}")
    count = 1
    for length in shape:
        if length < 0:
            raise DecodeError(f"an array of shape {shape}")
        count *= length
    size = len(buffer) if type(buffer) in (bytes, bytearray) else bytes_that_came(buffer).nbytes
    if isinstance(layout, str):
        if count * itemsize != size:
            raise DecodeError(f"an array of shape {shape} and dtype {dtype} does not have {size} bytes")
        array = numpy.frombuffer(buffer, dtype, count) if size else numpy.empty(count, dtype)
        return array if layout == "C" and len(shape) == 1 else array.reshape(shape, order=layout)
    offset, strides = layout
    # numpy looks too, but takes a buffer without bytes for one that is large enough, and sums that overflow.
    before, span = _extent(shape, strides, dtype.itemsize)
    if len(shape) != len(strides) or (count and (offset < before or offset - before + span > size)):
        raise DecodeError(
            f"an array of shape {shape}, dtype {dtype} and strides {strides} does not lie in {size} bytes"
        )
    array = numpy.ndarray(shape, dtype, buffer, offset, strides)
    if any(not stride and length > 1 for stride, length in zip(strides, shape)) or size < array.nbytes:
        array.flags.writeable = False
    return array


def bytes_that_came(buffer: Any) -> memoryview:
    """The bytes that a restorer is to read.

    Raises:
        DecodeError: it is something else. What was rebuilt already may hold pointers, as an array of objects does.
    """
    if type(buffer) not in (memoryview, bytes, bytearray, mmap):
        raise DecodeError(f"the bytes of an array were to be those of a {type(buffer).__name__}")
    return memoryview(buffer)


def restore_own_ndarray(spelled: Any, shape: Tuple[int, ...], layout: Layout, buffer: Any) -> Any:
    """An array that may be written to."""
    return restore_ndarray(spelled, shape, layout, bytearray(buffer) if type(buffer) is bytes else buffer)


def restore_read_only_ndarray(spelled: Any, shape: Tuple[int, ...], layout: Layout, buffer: Any) -> Any:
    """An array that may not; where there is no numpy, its memory as it is."""
    array = restore_ndarray(spelled, shape, layout, buffer)
    if type(buffer) is bytes and buffer:
        return array  # nobody can write to these
    if "numpy" in sys.modules and isinstance(array, sys.modules["numpy"].ndarray):
        array.flags.writeable = False
    return array


def restore_object_ndarray(shape: Tuple[int, ...], items: List[Any], order: str) -> Any:
    """An array of objects, which crossed one by one."""
    numpy = library("numpy", "a numpy array of Python objects")
    array = numpy.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(shape, order=order)


def _reduce_numpy_scalar(value: Any, carrier: Carrier) -> Reduced:
    # An empty string has no bytes by its dtype, yet some when asked for them.
    return restore_numpy_scalar, (_spell_dtype(value.dtype, value), value.tobytes()[: value.dtype.itemsize])


def restore_numpy_scalar(spelled: Any, data: bytes) -> Any:
    """A scalar of numpy; where numpy is not installed, the bool, int, float, complex, str or bytes that equals it, or
    else an ``ArrayBuffer`` without axes."""
    numpy = installed("numpy", "a numpy array")
    if numpy is None:
        return _load("array_buffer").of_scalar(spelled, data)
    dtype = _read_dtype(numpy, spelled)
    if dtype.hasobject or dtype.itemsize != bytes_that_came(data).nbytes:
        raise DecodeError(f"{len(data)} bytes are no scalar of dtype {dtype}")
    return numpy.frombuffer(data, dtype)[0] if data else dtype.type()


def _reduce_dtype(value: Any, carrier: Carrier) -> Reduced:
    return restore_dtype, ("O" if value.kind == "O" else _spell_dtype(value, value),)


def restore_dtype(spelled: Any) -> Any:
    """A dtype of numpy."""
    return _read_dtype(library("numpy", "a dtype of numpy"), spelled)


# -- look-up -------------------------------------------------------------------------------------------------------

RESTORERS: Dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (restore_ndarray, restore_object_ndarray, restore_numpy_scalar, restore_dtype)
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

_PACKAGE = __name__.rpartition(".")[0]
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
    f"{_PACKAGE}.array_buffer.ArrayBuffer": "array_buffer",
    f"{_PACKAGE}.tensors.Storage": "tensors",
    f"{_PACKAGE}.tensors.StoragePart": "tensors",
    f"{_PACKAGE}.device_array.DeviceArray": "cuda",
}

# And by what a type offers, asked for last.
_PROTOCOLS = {
    "__dlpack__": "interfaces",
    "__cuda_array_interface__": "cuda",
    "__array_interface__": "interfaces",
    "__arrow_c_stream__": "interfaces",
    "__arrow_c_array__": "interfaces",
}

# The restorers of the rooms loaded so far.
_room_restorers: Set[Callable[..., Any]] = set()
_found: Dict[type, Reducer] = {}
# What is often lent, and would be looked at in vain each time.
_NEVER = frozenset((type(lambda: 0), type(len), type([].append), type((lambda: (yield))())))


def array_reducer_of(cls: type) -> Optional[Reducer]:
    """How arrays of this very class are taken apart, or None if it is not one of an array."""
    reducer = _found.get(cls)
    if reducer is None and cls not in _NEVER:
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
            elif module.partition(".")[0] in ("numpy", "ml_dtypes"):
                numpy = sys.modules.get("numpy")
                if numpy is not None and issubclass(cls, numpy.generic):
                    reducer = _reduce_numpy_scalar
                elif numpy is not None and issubclass(cls, numpy.dtype):
                    reducer = _reduce_dtype
            else:
                reducer = _reducer_by_protocol(cls)
        if reducer is not None:
            _found[cls] = reducer
    return reducer


def _reducer_by_protocol(cls: type) -> Optional[Reducer]:
    for protocol, room in _PROTOCOLS.items():
        # Not hasattr, which would run code of a metaclass.
        if any(protocol in base.__dict__ for base in cls.__mro__):
            reducer: Optional[Reducer] = _load(room).reducer_of(cls)
            if reducer is not None:
                return reducer
    return None


def is_room_restorer(function: Callable[..., Any]) -> bool:
    """Whether a function is a restorer of one of the rooms, loaded by whomever."""
    if function in _room_restorers:
        return True
    module = function.__module__
    return type(module) is str and room_restorer(module, function.__name__) is function


def room_restorer(module: str, name: str) -> Optional[Callable[..., Any]]:
    """The restorer of that name in a room of another library, or None if there is none."""
    package, _, room = module.rpartition(".")
    if package != _PACKAGE or (room not in _ROOMS.values() and room not in _PROTOCOLS.values()):
        return None
    restorer: Optional[Callable[..., Any]] = _load(room).RESTORERS.get(name)
    return restorer


def _load(room: str) -> Any:
    from importlib import import_module

    loaded = import_module(f"{_PACKAGE}.{room}")
    _room_restorers.update(loaded.RESTORERS.values())
    return loaded
