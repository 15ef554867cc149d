# SPDX-License-Identifier: Apache-2.0
"""Arrays in the memory of a CUDA device: what crosses is a handle of the memory (CUDA IPC), never its bytes.

They are tensors of torch, and whatever has a ``__cuda_array_interface__``: cupy, numba, ``DeviceArray``. The memory is
*shared*: unlike arrays in main memory, what one side writes the other sees. What always holds:

* The sender waits for the work queued on the array's stream before it sends. Its memory stays until the receiver's last
  view is gone: it lends what keeps the memory, as ``ref`` lends objects.
* The receiver waits for its own work before it lets go of an array; a worker does so with arguments before it answers.
* The receiver finds the device by its UUID, because devices are numbered differently where ``CUDA_VISIBLE_DEVICES``
  differs. An allocation is mapped once per process, however many arrays lie in it, and unmapped when the last one is
  gone; only then is the memory given back.
* Memory that comes home is not mapped, which CUDA refuses, but found again; and an array that goes back and forth
  does not grow a chain of loans: who holds the memory already needs no second loan of it.

An array views a span of bytes, ``low`` to ``high``, and a ``_Hold`` keeps such a span usable in this process.

What CUDA does not promise is not promised here: memory of a process that has ended may be gone at once.

What does not belong here: what the driver's functions are called (``cuda_driver``).
"""

from __future__ import annotations

import atexit
import os
import sys
from _thread import allocate_lock
from _weakref import ref as weak_reference
from collections import deque
from functools import partial

from .adapters import Unsupported
from .cuda_driver import HANDLE_SIZE, DriverError
from .device_array import TORCH_DTYPES, DeviceArray, extent_of, item_size, strides_of
from .errors import DecodeError
from .references import Proxy, Ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, List, NoReturn, Optional, Tuple

    from .arrays import Carrier, Reduced, Reducer
    from .cuda_driver import Driver

    # UUID of the device, who allocated the memory, where the allocation begins over there, its handle, and how far
    # from there the bytes are.
    Source = Tuple[bytes, bytes, int, bytes, int]
    # The same of the first item, and whether the array is read-only. Without a handle there are no bytes.
    Memory = Tuple[bytes, bytes, int, bytes, int, bool]

_KEPT_IN_MAIN_MEMORY = "pass a copy in main memory (for torch x.cpu(), for cupy x.get())"
_NOT_SHARED = (
    "CUDA shares memory of cudaMalloc alone: with torch leave out expandable_segments and backend:cudaMallocAsync in "
    f"PYTORCH_CUDA_ALLOC_CONF, with cupy or numba use no asynchronous or managed allocator, or {_KEPT_IN_MAIN_MEMORY}"
)


# -- what keeps memory ---------------------------------------------------------------------------------------------


class _Mapping:
    """An allocation of another process, mapped into this one."""

    __slots__ = ("address", "base", "count", "device", "handle", "key", "origin_base", "size", "uuid")

    def __init__(self, key: Tuple[bytes, bytes], uuid: bytes, origin_base: int, device: int, address: int) -> None:
        self.key = key
        self.handle = key[1]
        self.uuid = uuid
        self.origin_base = origin_base
        self.device = device
        self.address = address  # where the driver mapped it, and what it wants to have back
        self.base = address
        self.size = 0
        self.count = 0  # of holds


class _Hold:
    """As long as there is one, a span of device memory is usable in this process.

    That of this process is kept by ``owner``, that of others by a mapping and a loan, which its ``_Record`` has.
    """

    __slots__ = ("__weakref__", "exchange", "mapping", "owner")

    def __init__(self, exchange: _Exchange, mapping: Optional[_Mapping], owner: object) -> None:
        self.exchange = exchange
        self.mapping = mapping
        self.owner = owner


class _Record:
    """What there is to be done when a hold is gone. Not by the hold's own finalizer: while that runs, another thread
    could still come by the hold."""

    __slots__ = ("__weakref__", "base", "high", "hold", "lent", "low", "mapping")

    def __init__(self, hold: _Hold, base: int, low: int, high: int, lent: object) -> None:
        self.base = base
        self.low = low
        self.high = high
        self.mapping = hold.mapping
        self.lent = lent
        self.hold: Callable[[], Optional[_Hold]] = weak_reference(hold, partial(hold.exchange.let_go, self))


class _Use:
    """What came has one of its own, however many share a hold: when it goes, the work that was queued with it is done.

    So a call that has returned has written what it writes to its arguments, and memory that is given back is not read
    any more. Which streams that work is on, nobody can know: all of the device's context are waited for.
    """

    __slots__ = ("_device", "_hold")

    def __init__(self, hold: _Hold, device: int) -> None:
        self._hold = hold
        self._device = device

    def __del__(self) -> None:
        exchange = self._hold.exchange
        if exchange.pid == os.getpid():
            try:
                exchange.driver.synchronize(self._device)
            except DriverError:
                pass  # the context is broken: nothing runs in it any more


class _Kept:
    """What is lent: nothing of it is public, so the other side can but give it back."""

    __slots__ = ("_hold", "_value")

    def __init__(self, value: object, hold: _Hold) -> None:
        self._value = value
        self._hold = hold


class _Exchange:
    """All device memory that this process shares with others. A process that was forked has one of its own."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.pid = os.getpid()
        # Tells this process from all others, also from one in another container with the same process id.
        self.token = os.urandom(16)
        self._lock = allocate_lock()
        self._mappings: Dict[Tuple[bytes, bytes], _Mapping] = {}
        self._records: Dict[int, List[_Record]] = {}  # by where the allocation begins
        # Holds end wherever the garbage collector runs, also in the middle of what has the lock: so that is only
        # written down there, and done by who gets the lock.
        self._gone: Deque[_Record] = deque()
        self._devices: Optional[List[bytes]] = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._lock.release()
        self._settle()

    def uuid_of(self, device: int) -> bytes:
        """The UUID of a device of this process."""
        devices = self._devices
        if devices is None:
            devices = self._devices = self.driver.devices()
        return devices[device]

    def device_of(self, uuid: bytes) -> int:
        """The device of this UUID in this process.

        Raises:
            DecodeError: this process does not see it.
        """
        devices = self._devices
        if devices is None:
            devices = self._devices = self.driver.devices()
        if uuid in devices:
            return devices.index(uuid)
        seen = ", ".join(f"{_spell_uuid(one)} as {number}" for number, one in enumerate(devices)) or "none"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        setting = "not set" if visible is None else repr(visible)
        raise DecodeError(
            f"an array of CUDA device {_spell_uuid(uuid)} came, which this process does not see: it sees {seen} "
            f"(CUDA_VISIBLE_DEVICES is {setting}). Make it visible to both sides, or {_KEPT_IN_MAIN_MEMORY}"
        )

    # -- sending -----------------------------------------------------------------------------------------------

    def lend(self, value: Any, low: int, high: int, stream: Optional[int], wait: bool) -> Tuple[Source, Ref]:
        """Export the span of a value, whose work on ``stream`` (None: any) is waited for if ``wait``.

        Returns:
            UUID, origin, its base, handle, and the offset of ``low``; and what keeps the memory, to be lent.

        Raises:
            DriverError: the memory cannot be shared.
        """
        driver = self.driver
        device = driver.device_of(low)
        if wait:
            driver.synchronize(device, stream)
        base, size = driver.allocation(device, low)
        if low < base or high > base + size:
            raise DriverError("it reaches across several allocations")
        with self:
            hold = self._covering(base, low, high)
            mapping = None if hold is None else hold.mapping
            if mapping is not None:
                # Received, and passed on: CUDA exports memory only where it was allocated, but its handle is known.
                memory = mapping.uuid, mapping.key[0], mapping.origin_base, mapping.handle, low - mapping.address
            else:
                memory = self.uuid_of(device), self.token, base, driver.export(device, base), low - base
                if hold is None:
                    hold = self._new_hold(base, low, high, None, None, value)
        assert hold is not None
        return memory, Ref(_Kept(value, hold))

    def _covering(self, base: int, low: int, high: int) -> Optional[_Hold]:
        for record in self._records.get(base, ()):
            if record.low <= low and high <= record.high:
                hold = record.hold()
                if hold is not None:
                    return hold
        return None

    def _new_hold(
        self, base: int, low: int, high: int, mapping: Optional[_Mapping], lent: object, owner: object
    ) -> _Hold:
        hold = _Hold(self, mapping, owner)
        self._records.setdefault(base, []).append(_Record(hold, base, low, high, lent))
        if mapping is not None:
            mapping.count += 1
        return hold

    # -- receiving ---------------------------------------------------------------------------------------------

    def receive(self, memory: Memory, extent: Tuple[int, int], lent: object) -> Tuple[_Use, int, int]:
        """What keeps the memory of an array that came, its device, and the address of its first item.

        Args:
            extent: the span around the first item, in bytes.
            lent: what the sender keeps the memory by; given back when the hold is gone.

        Raises:
            DecodeError: there is no such memory.
            DriverError: it cannot be opened.
        """
        uuid, origin, base, handle, offset, _ = memory
        device = self.device_of(uuid)
        if origin == self.token:
            low, high = base + offset + extent[0], base + offset + extent[1]
            with self:
                own = self._covering(base, low, high)
            if own is None or own.mapping is not None:
                raise DecodeError("a CUDA array names memory of this process that was not passed to anybody")
            return _Use(own, device), device, base + offset
        with self:
            mapping = self._mappings.get((origin, handle))
            if mapping is None:
                mapping = self._open((origin, handle), uuid, base, device)
            try:
                address = mapping.address + offset
                low, high = address + extent[0], address + extent[1]
                if low < mapping.base or high > mapping.base + mapping.size:
                    raise DecodeError(
                        f"a CUDA array reaches from byte {low - mapping.base:,} to {high - mapping.base:,} of an "
                        f"allocation of {mapping.size:,}"
                    )
                # Who has it already needs no second loan.
                hold = self._covering(mapping.base, low, high)
                if hold is None:
                    hold = self._new_hold(mapping.base, low, high, mapping, lent, None)
            finally:
                if not mapping.count:
                    self._close(mapping)
        return _Use(hold, device), device, address

    def _open(self, key: Tuple[bytes, bytes], uuid: bytes, origin_base: int, device: int) -> _Mapping:
        mapping = _Mapping(key, uuid, origin_base, device, self.driver.open(device, key[1]))
        self._mappings[key] = mapping
        try:
            # By this side's driver: the other one may say what it likes.
            mapping.base, mapping.size = self.driver.allocation(device, mapping.address)
        except BaseException:
            self._close(mapping)
            raise
        return mapping

    def _close(self, mapping: _Mapping) -> None:
        if self._mappings.pop(mapping.key, None) is not None:
            try:
                self.driver.close(mapping.device, mapping.address)
            except DriverError:
                pass  # the context is gone, and all mappings with it

    # -- letting go --------------------------------------------------------------------------------------------

    def let_go(self, record: _Record, reference: object) -> None:
        """A hold is gone. Called at any moment, on any thread."""
        if self.pid == os.getpid():  # what was mapped before a fork is the parent's to unmap
            self._gone.append(record)
            self._settle()

    def _settle(self) -> None:
        """Unmap what no hold is left for, and then let go of the loans."""
        while self._gone and self._lock.acquire(False):  # else who has it looks again afterwards
            loans: List[object] = []
            try:
                self._settle_locked(loans)
            finally:
                self._lock.release()
            loans.clear()  # this tells the sender, who may use the memory for something else now

    def _settle_locked(self, loans: List[object]) -> None:
        gone = []
        while self._gone:
            gone.append(self._gone.popleft())
        for record in gone:
            records = self._records[record.base]
            records.remove(record)
            if not records:
                del self._records[record.base]
            mapping = record.mapping
            if mapping is not None:
                mapping.count -= 1
                if not mapping.count:
                    self._close(mapping)
            loans.append(record.lent)
            record.lent = None

    @property
    def counts(self) -> Tuple[int, int]:
        """How many allocations of others are mapped, and how many spans of memory, own and others', are held."""
        with self:
            return len(self._mappings), sum(map(len, self._records.values()))


_driver: Optional[Driver] = None
# By process id: of this process, and left over, of what it was forked from.
_exchanges: Dict[int, _Exchange] = {}


def use_driver(driver: Optional[Driver]) -> None:
    """Ask this driver from now on instead of the machine's own (None): for tests, where there is no GPU."""
    global _driver
    _driver = driver
    _exchanges.clear()


def counts() -> Tuple[int, int]:
    """How many allocations of other processes are mapped into this one, and how many spans of device memory, of this
    process and of others, are held for arrays that were passed."""
    exchange = _exchanges.get(os.getpid())
    return (0, 0) if exchange is None else exchange.counts


def _exchange() -> _Exchange:
    global _driver
    exchange = _exchanges.get(os.getpid())
    if exchange is None:
        if _driver is None:
            from .cuda_driver import Cuda

            _driver = Cuda()
        exchange = _exchanges.setdefault(os.getpid(), _Exchange(_driver))  # another thread may have been quicker
    return exchange


@atexit.register
def _at_exit() -> None:
    """From now on nothing is unmapped: that happens with the end of the process, and what a driver needs goes first."""
    for exchange in _exchanges.values():
        exchange.pid = 0


def _spell_uuid(uuid: bytes) -> str:
    # As nvidia-smi does, and as CUDA_VISIBLE_DEVICES takes it.
    digits = uuid.hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


# -- taking apart --------------------------------------------------------------------------------------------------


def _refuse(value: object, error: DriverError) -> NoReturn:
    raise Unsupported(value, f"its CUDA memory cannot be shared: {error}. {_NOT_SHARED}") from error


def reduce_tensor(value: Any, carrier: Carrier) -> Reduced:
    """Take apart a tensor of torch on a CUDA device: its data, without what autograd knows of it.

    Raises:
        Unsupported: it has no plain memory, or CUDA cannot share it.
    """
    torch = sys.modules["torch"]
    if value.layout is not torch.strided:
        raise Unsupported(value, f"of layout {value.layout}: pass its parts, or x.to_dense()")
    dtype = str(value.dtype).rpartition(".")[2]
    if dtype not in TORCH_DTYPES:
        raise Unsupported(value, f"of dtype {value.dtype}")
    # These two may be a note on the tensor instead of bytes in its memory.
    tensor = value.detach().resolve_conj().resolve_neg()
    itemsize = tensor.element_size()
    shape = tuple(int(length) for length in tensor.shape)
    strides = tuple(int(stride) * itemsize for stride in tensor.stride())
    address = int(tensor.data_ptr())
    try:
        if 0 in shape:
            uuid = _exchange().uuid_of(tensor.device.index or 0)
            return restore_cuda_array, ("torch", dtype, shape, strides, (uuid, b"", 0, b"", 0, False), None)
        low, high = extent_of(shape, strides, itemsize)
        stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None
        source, kept = _exchange().lend(tensor, address + low, address + high, stream, stream is not None)
    except DriverError as error:
        _refuse(value, error)
    memory = (*source[:4], source[4] - low, False)
    return restore_cuda_array, ("torch", dtype, shape, strides, memory, kept)


def reduce_array(value: Any, carrier: Carrier) -> Reduced:
    """Take apart what has a ``__cuda_array_interface__``.

    Raises:
        Unsupported: that is not one that can be followed, or CUDA cannot share the memory.
    """
    cls = type(value)
    torch = sys.modules.get("torch")
    if torch is not None and issubclass(cls, torch.Tensor):
        raise Unsupported(value, "a tensor of a class of its own: pass x.as_subclass(torch.Tensor)")
    is_ours = cls is DeviceArray
    library, dtype = (value.origin, value.dtype) if is_ours else (cls.__module__.partition(".")[0], "")
    try:
        interface = value.__cuda_array_interface__
        shape = tuple(int(length) for length in interface["shape"])
        dtype = dtype or str(interface["typestr"])
        address, read_only = interface["data"]
        address = int(address or 0)
        itemsize = item_size(dtype)
        strides = interface.get("strides")
        strides = strides_of(shape, itemsize) if strides is None else tuple(int(stride) for stride in strides)
        if len(strides) != len(shape):
            raise ValueError(f"shape {shape} and strides {strides}")
        masked = interface.get("mask") is not None
        # Since version 3 it says which stream to wait for, if any. Nobody knows who wrote to one of ours since it came.
        stream = interface.get("stream")
        wait = is_ours or "stream" not in interface or stream is not None
    except Exception as error:  # code of a library, or of the user
        raise Unsupported(
            value, f"its __cuda_array_interface__ cannot be followed: {type(error).__name__}: {error}"
        ) from error
    if masked:
        raise Unsupported(value, "it is masked, which does not cross: pass its data and its mask")
    memory: Memory
    if 0 in shape:
        memory, kept = (value.uuid if is_ours else b"", b"", 0, b"", 0, bool(read_only)), None
    else:
        low, high = extent_of(shape, strides, itemsize)
        try:
            source, kept = _exchange().lend(value, address + low, address + high, stream, wait)
        except DriverError as error:
            _refuse(value, error)
        memory = (*source[:4], source[4] - low, bool(read_only))
    return restore_cuda_array, (library, dtype, shape, strides, memory, kept)


# -- putting together ----------------------------------------------------------------------------------------------


def restore_cuda_array(
    library: str, dtype: str, shape: Tuple[int, ...], strides: Tuple[int, ...], memory: Memory, lent: object
) -> Any:
    """An array of the library that it came from if this process has it, else a ``DeviceArray``.

    Raises:
        DecodeError: it cannot be opened here, or is not described as it should be.
    """
    try:
        itemsize = item_size(dtype)
        uuid, origin, base, handle, offset, read_only = memory
        if len(shape) != len(strides) or min(shape, default=0) < 0 or not isinstance(read_only, bool):
            raise ValueError(f"shape {shape}, strides {strides}")
        extent = extent_of(shape, strides, itemsize)
        if not all(type(number) is int for number in (base, offset, *shape, *strides)):
            raise ValueError("numbers that are none")
        if not all(type(part) is bytes for part in (uuid, origin, handle)):
            raise ValueError("bytes that are none")
        if 0 not in shape and (len(uuid), len(origin), len(handle)) != (16, 16, HANDLE_SIZE):
            raise ValueError("no handle")
    except (ValueError, TypeError, AttributeError) as error:
        raise DecodeError(f"a CUDA array is not described as it should be: {error}") from None
    if 0 not in shape and not isinstance(lent, Proxy):
        raise DecodeError("a CUDA array came without the loan that keeps its memory")
    try:
        exchange = _exchange()
        if 0 in shape:
            use, address, device = None, 0, exchange.device_of(uuid) if uuid else 0
        else:
            use, device, address = exchange.receive(memory, extent, lent)
    except DriverError as error:
        raise DecodeError(
            f"a CUDA array came, which this process cannot open: {error}; {_KEPT_IN_MAIN_MEMORY}"
        ) from error
    array = DeviceArray(
        library,
        dtype,
        tuple(shape),
        tuple(strides),
        device,
        address,
        read_only,
        use,
        uuid,
        exchange.driver.dlpack_kind,
    )
    make = _LIBRARIES.get(library)
    return array if make is None else make(array)


def _library(name: str) -> Any:
    """A library of arrays, or None if this process does not have it."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        return None


def _as_tensor(array: DeviceArray) -> Any:
    torch = _library("torch")
    if torch is None:
        return array
    from .dlpack import COMPLEX, INT, UINT

    dtype = getattr(torch, array.dtype, None)
    if dtype is None:
        raise DecodeError(
            f"a tensor of dtype {array.dtype} came, which torch {torch.__version__} does not have; "
            "use a newer torch on this side, or pass another dtype"
        )
    # As whole numbers of the same size, and then seen as what they are: DLPack does not know every dtype in every
    # version of torch. There are none of 16 bytes.
    size = array.itemsize
    code = COMPLEX if size == 16 else UINT if size == 1 else INT
    return torch.utils.dlpack.from_dlpack(array.capsule((code, 8 * size))).view(dtype)


def _as_cupy(array: DeviceArray) -> Any:
    cupy = _library("cupy")
    return array if cupy is None else cupy.asarray(array)


def _as_numba(array: DeviceArray) -> Any:
    numba_cuda = _library("numba.cuda")
    return array if numba_cuda is None else numba_cuda.as_cuda_array(array)


_LIBRARIES: Dict[str, Callable[[DeviceArray], Any]] = {"torch": _as_tensor, "cupy": _as_cupy, "numba": _as_numba}

# As in every room of arrays; other types are found by their interface.
RESTORERS: Dict[str, Callable[..., Any]] = {"restore_cuda_array": restore_cuda_array}
BY_NAME: Dict[Tuple[str, str], Reducer] = {(DeviceArray.__module__, DeviceArray.__qualname__): reduce_array}


def reducer_of(cls: type) -> Reducer:
    """How what has the interface is taken apart."""
    return reduce_array
