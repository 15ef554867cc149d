# SPDX-License-Identifier: Apache-2.0
"""An array on a CUDA device, for a process that has none of the libraries that know such arrays.

It describes its memory by the protocols that all of them read, and keeps it alive; it does no arithmetic. The bytes are
never looked at here: they are on the device.

What does not belong here: how the memory came into this process (``cuda``).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Sequence, Tuple

# dtypes of torch: the size of an item, and what other libraries call it ("V": they do not know it).
TORCH_DTYPES = {
    "bool": (1, "|b1"), "uint8": (1, "|u1"), "int8": (1, "|i1"),
    "uint16": (2, "<u2"), "uint32": (4, "<u4"), "uint64": (8, "<u8"),
    "int16": (2, "<i2"), "int32": (4, "<i4"), "int64": (8, "<i8"),
    "float16": (2, "<f2"), "float32": (4, "<f4"), "float64": (8, "<f8"),
    "complex32": (4, "|V4"), "complex64": (8, "<c8"), "complex128": (16, "<c16"),
    "bfloat16": (2, "|V2"),
    "float8_e4m3fn": (1, "|V1"), "float8_e5m2": (1, "|V1"), "float8_e4m3fnuz": (1, "|V1"),
    "float8_e5m2fnuz": (1, "|V1"), "float8_e8m0fnu": (1, "|V1"),
}  # fmt: skip
_ITEM_SIZES = {
    "b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16), "V": range(1, 1 << 16),
}  # fmt: skip


class DeviceArray:
    """An array in the memory of a CUDA device, where the library that it came from is not installed.

    It has ``__cuda_array_interface__``, ``__dlpack__`` and ``__dlpack_device__``, by which every library of device
    arrays takes it over without a copy. The memory is the sender's, and stays for as long as something uses it.

    Attributes:
        shape: the lengths of its dimensions.
        strides: how far apart their items are, in bytes.
        dtype: as ``__cuda_array_interface__`` spells it (``"<f4"``), or torch's name where that is where it came from.
        device: the ordinal of the device in this process.
        read_only: it is not to be written to.
        uuid: of the device, 16 bytes; empty where there are no items and the sender did not know.
        origin: the library that it came from (``"torch"``, ...), and is to be of again where that is installed.
    """

    __slots__ = ("__weakref__", "_address", "_dlpack_kind", "_owner", "device", "dtype", "origin",
                 "read_only", "shape", "strides", "uuid")  # fmt: skip

    def __init__(
        self,
        library: str,
        dtype: str,
        shape: Tuple[int, ...],
        strides: Tuple[int, ...],
        device: int,
        address: int,
        read_only: bool,
        owner: object,
        uuid: bytes,
        dlpack_kind: int,
    ) -> None:
        self.origin = library
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.device = device
        self.read_only = read_only
        self._address = address
        self._owner = owner
        self.uuid = uuid
        self._dlpack_kind = dlpack_kind

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many items it has."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def itemsize(self) -> int:
        """The size of an item, in bytes."""
        return item_size(self.dtype)

    @property
    def nbytes(self) -> int:
        """The bytes of its items."""
        return self.size * self.itemsize

    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        known = TORCH_DTYPES.get(self.dtype)
        return {
            "version": 3,
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype if known is None else known[1],
            "data": (self._address, self.read_only),
            "stream": None,  # the sender has waited
        }

    def __dlpack_device__(self) -> Tuple[int, int]:
        return self._dlpack_kind, self.device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: Any = None,
        copy: Optional[bool] = None,
    ) -> Any:
        if self.read_only:
            raise BufferError(
                "a read-only array cannot be offered as DLPack before its version 1, which is not made here"
            )
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("the memory of this array is offered as it is, not as a copy and on no other device")
        return self.capsule(_dlpack_dtype(self.dtype))

    def capsule(self, dtype: Tuple[int, int]) -> Any:
        """A DLPack capsule of the array, as if its items, whose size it is, were of another dtype.

        Raises:
            BufferError: DLPack cannot describe its strides.
        """
        from .dlpack import offer

        itemsize = self.itemsize
        if any(stride % itemsize for stride in self.strides):
            raise BufferError(f"strides of {self.strides} bytes are no multiples of the {itemsize} of an item")
        strides = [stride // itemsize for stride in self.strides]
        return offer(self._address, self.__dlpack_device__(), self.shape, strides, dtype, self._owner)

    def __repr__(self) -> str:
        return f"<DeviceArray of shape {self.shape} and dtype {self.dtype!r} on CUDA device {self.device}>"


def item_size(dtype: str) -> int:
    """The size of an item in bytes.

    Raises:
        ValueError: device arrays have no such items.
    """
    known = TORCH_DTYPES.get(dtype)
    if known is not None:
        return known[0]
    if dtype[:1] in ("<", ">", "|") and dtype[2:].isdecimal() and int(dtype[2:]) in _ITEM_SIZES.get(dtype[1], ()):
        return int(dtype[2:])
    raise ValueError(f"dtype {dtype!r}")


def _dlpack_dtype(dtype: str) -> Tuple[int, int]:
    from .dlpack import BFLOAT, BOOL, COMPLEX, FLOAT, INT, UINT

    known = TORCH_DTYPES.get(dtype)
    spelled = dtype if known is None else known[1]
    code = {"b": BOOL, "i": INT, "u": UINT, "f": FLOAT, "c": COMPLEX}.get(spelled[1])
    if dtype == "bfloat16":
        code = BFLOAT
    elif dtype == "complex32":
        code = COMPLEX
    if code is None or spelled[0] == ">":
        raise BufferError(f"DLPack knows no items of dtype {dtype!r}")
    return code, 8 * item_size(dtype)


def extent_of(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> Tuple[int, int]:
    """From where to where the items of an array reach, in bytes around its first one; nothing where it has none."""
    if 0 in shape:
        return 0, 0
    low = sum(min(0, stride * (length - 1)) for length, stride in zip(shape, strides))
    high = sum(max(0, stride * (length - 1)) for length, stride in zip(shape, strides))
    return low, high + itemsize


def strides_of(shape: Sequence[int], itemsize: int) -> Tuple[int, ...]:
    """The strides, in bytes, of an array in C order."""
    strides = []
    step = itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= max(1, length)
    return tuple(reversed(strides))
