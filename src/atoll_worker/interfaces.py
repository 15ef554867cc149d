# SPDX-License-Identifier: Apache-2.0
"""Objects of unknown type that say by a protocol what memory they have: asked for last, and only by their class.

* ``__dlpack__`` of memory that the processor can read, and ``__array_interface__``: they arrive as arrays of numpy.
* ``__arrow_c_stream__`` and ``__arrow_c_array__``: as tables, record batches and arrays of pyarrow, which both sides
  need.

Subclasses of what crosses by name are left alone: what makes them more than that would be lost. What does not belong
here: the memory of devices (``cuda``).
"""

from __future__ import annotations

from .adapters import Unsupported
from .arrays import array_reducer_of, restore_ndarray
from .buffers import store_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional, Tuple

    from .arrays import Carrier, Reduced, Reducer

_CPU = 1
_CUDA = (2, 13)
# What the numbers of DLPack's devices mean.
_DEVICES = {
    2: "CUDA", 3: "CUDA host memory", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 9: "VPI", 10: "ROCm",
    11: "ROCm host memory", 12: "an extension", 13: "CUDA managed memory", 14: "oneAPI", 15: "WebGPU", 16: "Hexagon",
    17: "MAIA",
}  # fmt: skip


def _offers(cls: type, protocol: str) -> bool:
    return any(protocol in base.__dict__ for base in cls.__mro__)


def _reduce_dlpack(value: Any, carrier: Carrier) -> Reduced:
    try:
        kind, number = (int(part) for part in value.__dlpack_device__())
    except Exception as error:  # code of a library, or of the user
        raise Unsupported(value, f"asked for its device, it raised {type(error).__name__}: {error}") from error
    if kind in _CUDA and _offers(type(value), "__cuda_array_interface__"):
        from .cuda import reduce_array

        return reduce_array(value, carrier)
    if kind != _CPU:
        device = _DEVICES.get(kind, f"device of DLPack's kind {kind}")
        raise Unsupported(value, f"in the memory of {device} {number}; copy it to the memory of the processor first")
    numpy = _numpy(value)
    return _reduce_as_ndarray(value, carrier, numpy, numpy.from_dlpack)


def _reduce_array_interface(value: Any, carrier: Carrier) -> Reduced:
    try:
        numpy = _numpy(value)
    except Unsupported:
        return _reduce_without_numpy(value, carrier)
    return _reduce_as_ndarray(value, carrier, numpy, numpy.asarray)


def _numpy(value: object) -> Any:
    from importlib import import_module

    try:
        return import_module("numpy")
    except ImportError as error:
        raise Unsupported(value, f"it would cross as an array of numpy, which is not here ({error})") from None


def _reduce_as_ndarray(value: Any, carrier: Carrier, numpy: Any, convert: Callable[[Any], Any]) -> Reduced:
    try:
        array = convert(value)
    except Exception as error:  # code of a library, or of the user
        raise Unsupported(value, f"numpy cannot read it: {type(error).__name__}: {error}") from error
    reducer = array_reducer_of(type(array))
    if type(array) is not numpy.ndarray or array.dtype.hasobject or reducer is None:
        raise Unsupported(value, f"numpy makes of it {type(array).__name__} of dtype {getattr(array, 'dtype', None)}")
    return reducer(array, carrier)


def _reduce_without_numpy(value: Any, carrier: Carrier) -> Reduced:
    try:
        interface = value.__array_interface__
        kind, shape = str(interface["typestr"]), tuple(int(length) for length in interface["shape"])
        itemsize = int(kind[2:])
        address, _ = interface["data"]
        nbytes = itemsize
        for length in shape:
            nbytes *= length
        if kind[1] not in "biufcSV" or interface.get("strides") is not None or interface.get("mask") is not None:
            raise ValueError("only plain numbers and bytes in a row can be read without numpy")
    except Exception as error:  # code of a library, or of the user
        raise Unsupported(
            value, f"its __array_interface__ cannot be followed: {type(error).__name__}: {error}"
        ) from error
    import ctypes

    class Memory(ctypes.c_ubyte * nbytes):  # type: ignore[misc]
        """With room for what keeps the memory alive."""

    memory: Any = Memory.from_address(address or 0) if nbytes else Memory()
    memory.owner = value
    return restore_ndarray, (kind, shape, "C", store_bytes(memoryview(memory).cast("B"), carrier))


def _reduce_arrow(value: Any, carrier: Carrier) -> Reduced:
    from importlib import import_module

    try:
        pyarrow = import_module("pyarrow")
    except ImportError as error:
        raise Unsupported(value, f"it would cross as an Arrow table, but pyarrow is not here ({error})") from None
    converters = (
        (pyarrow.table, pyarrow.chunked_array)
        if _offers(type(value), "__arrow_c_stream__")
        else (pyarrow.record_batch, pyarrow.array)
    )
    first: Optional[Exception] = None
    for convert in converters:
        try:
            converted = convert(value)
        except Exception as error:  # code of a library, or of the user; or it is of the other kind
            first = first or error
            continue
        reducer = array_reducer_of(type(converted))
        if reducer is not None:
            return reducer(converted, carrier)
    raise Unsupported(value, f"pyarrow cannot read it: {type(first).__name__}: {first}")


# -- look-up -------------------------------------------------------------------------------------------------------

RESTORERS: Dict[str, Callable[..., Any]] = {}
BY_NAME: Dict[Tuple[str, str], Reducer] = {}
_BY_PROTOCOL: Dict[str, Reducer] = {
    "__arrow_c_stream__": _reduce_arrow,
    "__arrow_c_array__": _reduce_arrow,
    "__array_interface__": _reduce_array_interface,
    "__dlpack__": _reduce_dlpack,
}
# The rooms of reducers that are found by what a class offers, not by its name.
_FOR_PROTOCOLS = (__name__, f"{__name__.rpartition('.')[0]}.cuda")


def reducer_of(cls: type) -> Optional[Reducer]:
    """For classes that offer one of the protocols, and are no subclasses of what is known by name."""
    for base in cls.__mro__[1:]:
        known = array_reducer_of(base)
        if (base.__module__, base.__qualname__) == ("pyarrow.lib", "ExtensionArray"):
            return known  # pyarrow finds the class again by the type
        if known is not None and known.__module__ not in _FOR_PROTOCOLS:
            return None
    for protocol, reducer in _BY_PROTOCOL.items():
        if _offers(cls, protocol):
            return reducer
    return None
