# SPDX-License-Identifier: Apache-2.0
"""Arrays that live in shared memory from the start, so that passing them costs the same at any size.

The same on both sides: ``atoll.empty`` and ``atoll.asarray`` in the host, ``atoll_worker.empty`` and
``atoll_worker.asarray`` in a worker.
"""

from __future__ import annotations

import sys
from importlib import import_module
from operator import index

from .segments import ONLY, RATHER, Segment, store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Sequence, Tuple, Union

    from .segments import Peer


def empty(shape: Union[int, Sequence[int]], dtype: Any = "float64", order: str = "C") -> Any:
    """A new array in shared memory, whose items may be anything, as those of ``numpy.empty``.

    It can be written to and passed any number of times; whoever it is passed to reads the very same memory, so it must
    not be written to while a call that was given it is in progress. Its memory is used again once nothing refers to it.

    Args:
        shape: its shape, or its length.
        dtype: of its items; a ``torch.dtype`` for a tensor of torch, else anything that numpy takes.
        order: ``"C"`` or ``"F"``, of an array of numpy.

    Raises:
        SegmentsExhausted: the memory budget is used up.
        TypeError: items of this dtype are no plain bytes, or the shape is not made of whole numbers.
        ValueError: a length is negative.
    """
    lengths: Any = shape if hasattr(shape, "__iter__") else (shape,)
    dimensions = tuple(int(index(length)) for length in lengths)
    if any(length < 0 for length in dimensions):
        raise ValueError(f"no array can have the shape {dimensions}: a length is negative")
    return _empty(dimensions, dtype, order, RATHER, None)


def copy_for_writers(value: Any, writer: Peer) -> Any:
    """A copy of an array of numpy or a tensor of torch in shared memory, which a peer can be lent to write to.

    Raises:
        SegmentsExhausted, TypeError: as ``empty``.
    """
    return _copy(value, ONLY, writer)


def _empty(dimensions: Tuple[int, ...], dtype: Any, order: str, for_writers: int, writer: Optional[Peer]) -> Any:
    if type(dtype).__module__ == "torch":
        torch = sys.modules["torch"]
        tensor = torch.empty(0, dtype=dtype)
        count = 1
        for length in dimensions:
            count *= length
        if not count:
            return torch.empty(dimensions, dtype=dtype)
        memory = _memory(count * tensor.element_size(), for_writers, writer)
        return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).reshape(dimensions)
    numpy: Any = import_module("numpy")
    kind = numpy.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"an array of dtype {kind} holds references to objects, which cannot lie in shared memory")
    if kind.subdtype is not None:  # each item is an array itself
        kind, inner = kind.subdtype
        dimensions += inner
    array = numpy.ndarray(dimensions, kind, order=order) if kind.itemsize == 0 or 0 in dimensions else None
    if array is not None:
        return array
    count = 1
    for length in dimensions:
        count *= length
    memory = _memory(count * kind.itemsize, for_writers, writer)
    return numpy.frombuffer(memory, kind).reshape(dimensions, order=order)


def asarray(value: Any) -> Any:
    """An array in shared memory with the items of ``value``, which is an array, a tensor or what numpy makes one of.

    An array that lies in shared memory already, and can be written to, is returned itself.

    Raises:
        SegmentsExhausted, TypeError: as ``empty``.
    """
    if _is_tensor(value):
        if segment_of(value.data_ptr(), value.untyped_storage().nbytes()) is not None:
            return value
        return _copy(value, RATHER, None)
    array = import_module("numpy").asarray(value)
    if array.flags.writeable and segment_of(*span_of(array)) is not None:
        return array
    return _copy(array, RATHER, None)


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "untyped_storage")


def _copy(value: Any, for_writers: int, writer: Optional[Peer]) -> Any:
    copy: Any
    if _is_tensor(value):
        copy = _empty(tuple(value.shape), value.dtype, "C", for_writers, writer)
        copy.copy_(value.detach())
        store.count_copy(copy.numel() * copy.element_size())
        return copy
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    copy = _empty(value.shape, value.dtype, order, for_writers, writer)
    import_module("numpy").copyto(copy, value, casting="no")
    store.count_copy(copy.nbytes)
    return copy


def span_of(array: Any) -> Tuple[int, int]:
    """Address of the first byte of an array of numpy, and how many there are to its last."""
    address: int = array.__array_interface__["data"][0]
    steps = [stride * (length - 1) for stride, length in zip(array.strides, array.shape)]
    lowest = sum(step for step in steps if step < 0)
    return address + lowest, sum(map(abs, steps)) + array.itemsize


def segment_of(address: int, nbytes: int) -> Optional[Segment]:
    """This process's segment that these bytes lie in; None if they lie elsewhere."""
    with store.lock:
        found = store.find(address, nbytes)
    return found[0] if found is not None and type(found[0]) is Segment else None


def _memory(nbytes: int, for_writers: int, writer: Optional[Peer]) -> memoryview:
    segment = store.allocate(nbytes, for_writers, writer)
    try:
        held = store.keep(segment)
    except BaseException:
        store.let_go(segment)
        raise
    return memoryview(held).cast("B")[:nbytes]
