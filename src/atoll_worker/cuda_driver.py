# SPDX-License-Identifier: Apache-2.0
"""The few functions of the CUDA driver that passing device memory between processes needs.

``Driver`` says what they are, ``Cuda`` is the real one, by way of ctypes: the driver's own library is on every machine
with a GPU, whatever frameworks a service has. What always holds: calls are made in the *primary* context of a device,
the one that torch, cupy and the CUDA runtime use; and the context that was current before is current again afterwards.

What does not belong here: what is lent to whom (``cuda``).
"""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

HANDLE_SIZE = 64

_LIBRARY = "libcuda.so.1"
_IS_MANAGED = 8  # CU_POINTER_ATTRIBUTE_IS_MANAGED
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_IS_IPC_CAPABLE = 10  # CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE
_LAZY_ENABLE_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag there is
_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED
_ALREADY_MAPPED = 208  # CUDA_ERROR_ALREADY_MAPPED


class DriverError(Exception):
    """The driver is missing, or refused; the message says which call did, and what the driver calls it."""


class Driver:
    """What is asked of the driver. Addresses and sizes are in bytes; a device is its ordinal in this process.

    Every method may raise DriverError, and be called on any thread.
    """

    # The number of this kind of device in DLPack: kDLCUDA.
    dlpack_kind = 2

    def devices(self) -> List[bytes]:
        """The UUIDs, of 16 bytes, of the devices that this process sees, by ordinal."""
        raise NotImplementedError

    def device_of(self, address: int) -> int:
        """The device whose memory an address is of."""
        raise NotImplementedError

    def allocation(self, device: int, address: int) -> Tuple[int, int]:
        """Where the allocation around an address begins, and its size."""
        raise NotImplementedError

    def synchronize(self, device: int, stream: Optional[int] = None) -> None:
        """Wait until the work queued on a stream, or on all of the device's context, is done."""
        raise NotImplementedError

    def export(self, device: int, base: int) -> bytes:
        """The handle, of ``HANDLE_SIZE`` bytes, by which another process opens the allocation that begins here."""
        raise NotImplementedError

    def open(self, device: int, handle: bytes) -> int:
        """Map an allocation of another process; its address here. To be closed before it can be opened again."""
        raise NotImplementedError

    def close(self, device: int, address: int) -> None:
        """Undo ``open``."""
        raise NotImplementedError


class _Handle(ctypes.Structure):
    # A CUipcMemHandle, which is passed by value.
    _fields_ = [("reserved", ctypes.c_char * HANDLE_SIZE)]


class Cuda(Driver):
    """The driver of this machine.

    Raises:
        DriverError: there is none, or no device that it can use.
    """

    def __init__(self) -> None:
        try:
            library: Any = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise DriverError(f"the CUDA driver cannot be loaded ({error})") from None
        self._library = library
        # With types only where the default (int) would cut an address in half.
        word, pointer = ctypes.c_size_t, ctypes.c_void_p
        library.cuPointerGetAttribute.argtypes = [pointer, ctypes.c_int, word]
        library.cuMemGetAddressRange_v2.argtypes = [pointer, pointer, word]
        library.cuStreamSynchronize.argtypes = [pointer]
        library.cuIpcGetMemHandle.argtypes = [pointer, word]
        library.cuIpcOpenMemHandle_v2.argtypes = [pointer, _Handle, ctypes.c_uint]
        library.cuIpcCloseMemHandle.argtypes = [word]
        library.cuCtxPushCurrent_v2.argtypes = [pointer]
        self._contexts: Dict[int, Any] = {}
        self._call("cuInit", 0)

    def _call(self, name: str, *args: Any) -> None:
        code = getattr(self._library, name)(*args)
        if code:
            raise DriverError(self._describe(name, code))

    def _describe(self, name: str, code: int) -> str:
        words = []
        for describe in (self._library.cuGetErrorName, self._library.cuGetErrorString):
            text = ctypes.c_char_p()
            if describe(code, ctypes.byref(text)) == 0 and text.value is not None:
                words.append(text.value.decode("utf-8", "replace"))
        message = f"{name}: {', '.join(words) or f'error {code}'}"
        if code == _NOT_INITIALIZED:
            message += "; CUDA cannot be used in a process forked from one that used it"
        elif code == _ALREADY_MAPPED:
            message += "; it is open in this process already, for another library or as part of what lies beside it"
        return message

    def _current(self, device: int) -> _Current:
        context = self._contexts.get(device)
        if context is None:
            number = ctypes.c_int()
            self._call("cuDeviceGet", ctypes.byref(number), device)
            context = ctypes.c_void_p()
            # Never released: the context is everybody's, and goes with the process.
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
            self._contexts[device] = context
        return _Current(self, context)

    def push(self, context: Any) -> None:
        """Make a context the current one of this thread."""
        self._call("cuCtxPushCurrent_v2", context)

    def pop(self) -> None:
        """Make current again what was before ``push``."""
        popped = ctypes.c_void_p()
        self._call("cuCtxPopCurrent_v2", ctypes.byref(popped))

    def devices(self) -> List[bytes]:
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        # The second version tells the parts of a divided device (MIG) from each other; CUDA before 11.4 has none.
        name = "cuDeviceGetUuid_v2" if hasattr(self._library, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
        found = []
        for ordinal in range(count.value):
            number = ctypes.c_int()
            self._call("cuDeviceGet", ctypes.byref(number), ordinal)
            uuid = (ctypes.c_char * 16)()
            self._call(name, ctypes.byref(uuid), number)
            found.append(uuid.raw)
        return found

    def _attribute(self, which: int, address: int) -> int:
        found = ctypes.c_int()
        self._call("cuPointerGetAttribute", ctypes.byref(found), which, address)
        return found.value

    def device_of(self, address: int) -> int:
        return self._attribute(_DEVICE_ORDINAL, address)

    def allocation(self, device: int, address: int) -> Tuple[int, int]:
        base, size = ctypes.c_size_t(), ctypes.c_size_t()
        with self._current(device):
            self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
        return base.value, size.value

    def synchronize(self, device: int, stream: Optional[int] = None) -> None:
        with self._current(device):
            if stream is None:
                self._call("cuCtxSynchronize")
            else:
                self._call("cuStreamSynchronize", stream)

    def export(self, device: int, base: int) -> bytes:
        handle = _Handle()
        with self._current(device):
            try:
                self._call("cuIpcGetMemHandle", ctypes.byref(handle), base)
            except DriverError as error:
                raise DriverError(f"{self._kind_of(base)}{error}") from None
        return ctypes.string_at(ctypes.byref(handle), HANDLE_SIZE)  # all of them, also after a zero

    def _kind_of(self, base: int) -> str:
        """What keeps memory from being exported, if the driver knows it."""
        try:
            if self._attribute(_IS_MANAGED, base):
                return "it is managed memory; "
            if not self._attribute(_IS_IPC_CAPABLE, base):
                return "it is of a memory pool or made of pieces, not of cudaMalloc; "
        except DriverError:
            pass  # an older driver does not know to say
        return ""

    def open(self, device: int, handle: bytes) -> int:
        address = ctypes.c_size_t()
        with self._current(device):
            self._call(
                "cuIpcOpenMemHandle_v2",
                ctypes.byref(address),
                _Handle.from_buffer_copy(handle),
                _LAZY_ENABLE_PEER_ACCESS,
            )
        return address.value

    def close(self, device: int, address: int) -> None:
        with self._current(device):
            self._call("cuIpcCloseMemHandle", address)


class _Current:
    """``with``: a context is the current one."""

    __slots__ = ("_context", "_driver")

    def __init__(self, driver: Cuda, context: Any) -> None:
        self._driver = driver
        self._context = context

    def __enter__(self) -> None:
        self._driver.push(self._context)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._driver.pop()
