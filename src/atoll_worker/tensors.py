# SPDX-License-Identifier: Apache-2.0
"""Tensors of torch that the processor can read: their data, without what autograd knows of it.

A tensor is a view of a storage. What crosses is the part of the storage that the tensors of one message use: a view of
a gigabyte brings no gigabyte along, and views that have bytes in common have them in common over there. Each such part
is one object of the data pickle, which the tensors refer to::

    restore_tensor(restore_storage(bytes), dtype, bytes of an item, offset in bytes, shape, strides in items)

A part may turn out to be too small when a later tensor comes; then the carrier is asked to encode all once more.

Where torch is not installed, a tensor arrives as an array of numpy if that is there and knows the dtype, else as an
``ArrayBuffer``, which is the tensor again once it is passed on. What does not belong here: tensors of a CUDA device
(``cuda``).
"""

from __future__ import annotations

import sys

from .adapters import Unsupported
from .array_buffer import ArrayBuffer, carry
from .arrays import bytes_that_came, installed, library, restore_ndarray
from .device_array import TORCH_DTYPES
from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

    from .arrays import Carrier, Reduced, Reducer

# Parts of storages begin at multiples of this, counted from where the storage does: what processors like, and a
# multiple of the size of any item.
_ALIGNMENT = 64


class StoragePart:
    """Bytes of a storage that tensors of one message use, to be sent.

    Attributes:
        tensor: one of them, which keeps the storage alive.
        address: where the storage begins.
        low, high: first byte, and the one after the last, counted from there.
        is_shared: the other side may write to them.
    """

    __slots__ = ("address", "high", "is_shared", "low", "tensor")

    def __init__(self, tensor: Any, address: int, low: int, high: int, is_shared: bool = False) -> None:
        self.tensor = tensor
        self.address = address
        self.low = low
        self.high = high
        self.is_shared = is_shared


class _Parts:
    """Those of one storage: in order, none of which touches another."""

    __slots__ = ("lows", "parts")

    def __init__(self) -> None:
        self.lows: List[int] = []
        self.parts: List[StoragePart] = []


def _part_for(carrier: Carrier, tensor: Any, address: int, low: int, high: int) -> StoragePart:
    """The part of a storage that has these bytes."""
    key = "torch", address
    known = carrier.notes.get(key)
    if known is None:
        known = carrier.notes[key] = _Parts()
    from bisect import bisect_left, bisect_right

    lows, parts = known.lows, known.parts
    # Those that touch: from the last that begins before, if it reaches so far, to the last that begins within.
    end = bisect_right(lows, high)
    start = bisect_left(lows, low)
    if start < end and lows[start] == low and parts[start].high >= high:
        return parts[start]
    if start and parts[start - 1].high >= low:
        start -= 1
        if parts[start].high >= high:
            return parts[start]
    if start == end:
        part = StoragePart(tensor, address, low, high)
    elif carrier.again():
        part = StoragePart(tensor, address, min(low, parts[start].low), max(high, parts[end - 1].high))
    else:
        # Made anew each time by whoever encodes it: then it has a part of its own.
        return StoragePart(tensor, address, low, high)
    lows[start:end] = [part.low]
    parts[start:end] = [part]
    return part


def _reduce_part(value: StoragePart, carrier: Carrier) -> Reduced:
    if value.is_shared and not carrier.is_sharing:
        reduced: Reduced = carrier.share(value)
        return reduced
    import ctypes

    address, nbytes = value.address + value.low, value.high - value.low
    if nbytes < carrier.inline:
        return restore_storage, (ctypes.string_at(address, nbytes),)
    found = carrier.find(address, nbytes)
    if found is not None:
        return restore_storage, (found,)
    owner = value.tensor

    def fill(memory: memoryview) -> None:
        # With the interpreter lock released.
        ctypes.memmove(ctypes.addressof(ctypes.c_char.from_buffer(memory)), address, nbytes)
        assert owner is not None  # until now

    def raw() -> memoryview:
        from _pickle import PickleBuffer

        array = (ctypes.c_char * nbytes).from_address(address)
        array.owner = owner  # type: ignore[attr-defined]
        return PickleBuffer(array).raw()

    return restore_storage, (carrier.store(nbytes, fill, address, raw),)


class Storage:
    """Bytes that tensors are views of, on arrival.

    Attributes:
        memory: they, writable.
    """

    __slots__ = ("_tensor", "memory")

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self._tensor: Any = None

    def of_torch(self, torch: Any) -> Any:
        """The storage, which keeps the memory alive."""
        if self._tensor is None:
            self._tensor = torch.frombuffer(self.memory, dtype=torch.uint8)
        return self._tensor.untyped_storage()


def restore_storage(buffer: Any) -> Storage:
    """What ``restore_tensor`` makes views of."""
    memory = bytes_that_came(buffer)
    return Storage(memoryview(bytearray(memory)) if memory.readonly else memory.cast("B"))


def _reduce_storage(value: Storage, carrier: Carrier) -> Reduced:
    return restore_storage, (carry(carrier, value.memory),)


def _reduce_tensor(value: Any, carrier: Carrier) -> Reduced:
    torch = sys.modules["torch"]
    if not hasattr(value, "untyped_storage"):
        raise Unsupported(value, f"of torch {torch.__version__}; 2.0 or later is needed, or pass x.numpy()")
    if value.is_nested:
        raise Unsupported(value, "nested; pass x.unbind()")
    if value.layout is not torch.strided:
        raise Unsupported(value, f"of layout {value.layout}; pass x.to_dense(), or its indices and values")
    device = value.device.type
    if device == "cuda":
        from .cuda import reduce_tensor

        return reduce_tensor(value, carrier)
    if device == "meta":
        raise Unsupported(value, "of the device meta, where tensors have no data")
    if device != "cpu":
        raise Unsupported(value, f"of the device {value.device}; pass x.cpu()")
    if value.is_quantized:
        raise Unsupported(value, "quantised; pass x.dequantize(), or x.int_repr() with its scale and zero point")
    if value.is_conj() or value.is_neg():
        value = value.detach().resolve_conj().resolve_neg()
    dtype, itemsize = str(value.dtype).rpartition(".")[2], value.element_size()
    shape, strides = tuple(value.shape), value.stride()
    if not value.numel():
        return restore_tensor, (None, dtype, itemsize, 0, shape, strides)
    storage = value.untyped_storage()
    address = storage.data_ptr()
    low = high = value.storage_offset() * itemsize
    for length, stride in zip(shape, strides):
        high += (length - 1) * stride * itemsize
    high += itemsize
    start = low - low % _ALIGNMENT
    if carrier.is_sharing:
        part = StoragePart(value, address, start, high, is_shared=True)
    else:
        part = _part_for(carrier, value, address, start, high)
    return restore_tensor, (part, dtype, itemsize, low - part.low, shape, strides)


def restore_tensor(
    storage: Optional[Storage], dtype: str, itemsize: int, offset: int, shape: Sequence[int], strides: Sequence[int]
) -> Any:
    """A tensor that may be written to, as others of the same message that have bytes in common with it will show.

    Args:
        storage: what it is a view of; None if it has no items.
        dtype: its name in torch.
        itemsize: bytes of an item.
        offset: of the first item in the storage, in bytes.
        shape: lengths of the axes.
        strides: items from one to the next, for each axis.
    """
    if type(storage) is not Storage and storage is not None:
        raise DecodeError(f"a tensor of {type(storage).__name__}")
    end, is_empty = offset + itemsize, False
    for length, stride in zip(shape, strides):
        if length < 0 or stride < 0:
            raise DecodeError(f"a tensor of shape {shape} and strides {strides}")
        is_empty = is_empty or not length
        end += (length - 1) * stride * itemsize
    if len(shape) != len(strides) or offset < 0 or itemsize < 1 or offset % itemsize:
        raise DecodeError(f"a tensor of shape {shape} and strides {strides} from byte {offset} on")
    if (storage is None) != is_empty or (storage is not None and end > storage.memory.nbytes):
        raise DecodeError(
            f"a tensor of shape {shape} and strides {strides} does not lie in "
            f"{0 if storage is None else storage.memory.nbytes} bytes"
        )
    torch = installed("torch", "a tensor of torch")
    if torch is None:
        return _restore_without_torch(storage, dtype, itemsize, offset, shape, strides)
    if not hasattr(torch.Tensor, "untyped_storage"):
        raise DecodeError(
            f"a tensor came, but torch {torch.__version__} of this side is too old; add torch>=2 to its dependencies"
        )
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise DecodeError(f"a tensor of dtype {dtype} came, which torch {torch.__version__} of this side does not have")
    tensor = torch.empty(shape if is_empty else 0, dtype=kind, device="cpu")
    if tensor.element_size() != itemsize:
        raise DecodeError(f"a tensor of {dtype} with items of {itemsize} bytes")
    if storage is None:
        return tensor
    return tensor.set_(storage.of_torch(torch), offset // itemsize, tuple(shape), tuple(strides))


def _restore_without_torch(
    storage: Optional[Storage], dtype: str, itemsize: int, offset: int, shape: Sequence[int], strides: Sequence[int]
) -> Any:
    memory: Any = bytearray() if storage is None else storage.memory
    shape, steps = tuple(shape), tuple(stride * itemsize for stride in strides)
    size, name = TORCH_DTYPES.get(dtype, (itemsize, "|V"))
    if size != itemsize:
        raise DecodeError(f"a tensor of {dtype} with items of {itemsize} bytes")
    spelled: Any = name
    if name.startswith("|V"):
        spelled = name = dtype
        if dtype == "bfloat16" or dtype.startswith("float8_"):
            spelled = "ml_dtypes", dtype, itemsize
    if installed("numpy", "a tensor of torch") is not None and (spelled is not dtype and _is_known(spelled)):
        return restore_ndarray(spelled, shape, "C" if storage is None else (offset, steps), memory)

    def pass_on(carrier: Carrier) -> Reduced:
        return restore_tensor, (storage, dtype, itemsize, offset, shape, tuple(strides))

    return ArrayBuffer("torch", name, itemsize, shape, steps, memory, offset, pass_on)


def _is_known(spelled: Any) -> bool:
    """Whether numpy has the dtype here."""
    if isinstance(spelled, str):
        return True
    module = installed("ml_dtypes", f"a tensor of dtype {spelled[1]}")
    return module is not None and hasattr(module, spelled[1])


def _reduce_parameter(value: Any, carrier: Carrier) -> Reduced:
    return restore_parameter, (value.detach(), value.requires_grad)


def restore_parameter(data: Any, requires_grad: bool) -> Any:
    """A parameter of a module of torch, without gradient; where torch is not installed, what its data is there."""
    torch = installed("torch", "a parameter of torch")
    if torch is not None:
        return torch.nn.Parameter(data, requires_grad)
    if type(data) is not ArrayBuffer:
        return data
    parts = data.origin, data.dtype, data.itemsize, data.shape, data.strides, data.data, data.offset
    return ArrayBuffer(*parts, lambda carrier: (restore_parameter, (data, requires_grad)))


def _reduce_size(value: Any, carrier: Carrier) -> Reduced:
    return restore_size, (tuple(value),)


def restore_size(lengths: Sequence[int]) -> Any:
    """A ``torch.Size``; where torch is not installed, a tuple, which is what that is too."""
    torch = installed("torch", "a torch.Size")
    return tuple(lengths) if torch is None else torch.Size(lengths)


def _reduce_name(value: Any, carrier: Carrier) -> Reduced:
    return restore_name, (type(value).__name__, str(value).rpartition(".")[2])


def restore_name(kind: str, name: str) -> Any:
    """A dtype, device, layout or memory format of torch."""
    torch = library("torch", f"a torch.{kind}")
    if kind == "device":
        return torch.device(name)
    found = getattr(torch, name, None)
    if kind not in ("dtype", "layout", "memory_format") or not isinstance(found, getattr(torch, kind)):
        raise DecodeError(f"torch.{name} came, a {kind}, which torch {torch.__version__} of this side does not have")
    return found


RESTORERS: Dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (restore_storage, restore_tensor, restore_parameter, restore_size, restore_name)
}
BY_NAME: Dict[Tuple[str, str], Reducer] = {
    ("torch", "Tensor"): _reduce_tensor,
    ("torch.nn.parameter", "Parameter"): _reduce_parameter,
    ("torch", "Size"): _reduce_size,
    ("torch", "dtype"): _reduce_name,
    ("torch", "device"): _reduce_name,
    ("torch", "layout"): _reduce_name,
    ("torch", "memory_format"): _reduce_name,
    (__name__, "StoragePart"): _reduce_part,
    (__name__, "Storage"): _reduce_storage,
}
