# SPDX-License-Identifier: Apache-2.0
"""A CUDA driver for machines without a GPU: "device memory" is files in a folder, which processes really map.

It is stricter than CUDA: what is opened twice, opened where it was made, exported where it was not, closed twice, or
used after it was closed, fails. Everything that is asked of it goes into a file, with the process that asked.

Runs in workers too, so: Python 3.9, and nothing but the standard library and ``atoll_worker``.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atoll_worker.cuda_driver import HANDLE_SIZE, Driver, DriverError

# UUIDs of the devices of the machine, in the order in which a process sees them that sees all.
DEVICES = tuple(bytes([number]) * 16 for number in (0xA0, 0xB1))


class StandIn(Driver):
    """See the module.

    Args:
        folder: the same for all processes.
        visible: the devices this process sees, as ``CUDA_VISIBLE_DEVICES`` would have it.
    """

    dlpack_kind = 1  # for those who look: it is main memory

    def __init__(self, folder: Path, visible: tuple[int, ...] = (0, 1)) -> None:
        self.folder = folder
        self.visible = [DEVICES[one] for one in visible]
        self.exportable = True
        self.on_close: Callable[[], object] = lambda: None
        # By address: the file, its size, the memory and the device.
        self.own: dict[int, tuple[str, int, mmap.mmap, int]] = {}
        self.opened: dict[int, tuple[str, int, mmap.mmap, int]] = {}
        self._numbers = itertools.count(1)

    def note(self, what: str, name: str = "") -> None:
        """One more line of the log; a single write, so that those of several processes do not mix."""
        with open(self.folder / "log", "ab", buffering=0) as log:
            log.write(f"{os.getpid()} {what} {name}".rstrip().encode() + b"\n")

    # -- what an application does ----------------------------------------------------------------------------

    def allocate(self, nbytes: int, device: int = 0) -> int:
        """The address of new memory."""
        name = f"{self.visible[device].hex()}-{os.getpid()}-{next(self._numbers)}"
        (self.folder / name).write_bytes(bytes(nbytes))
        address, memory = self._map(name)
        self.own[address] = name, nbytes, memory, device
        return address

    def free(self, address: int) -> None:
        """Let go of memory."""
        name, _, memory, _ = self.own.pop(address)
        memory.close()
        (self.folder / name).unlink()
        self.note("free", name)

    def _map(self, name: str) -> tuple[int, mmap.mmap]:
        with open(self.folder / name, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        first = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(first)
        del first  # else the memory could not be closed
        return address, memory

    # -- what is asked of a driver ---------------------------------------------------------------------------

    def _around(self, address: int) -> tuple[int, tuple[str, int, mmap.mmap, int]]:
        for table in (self.own, self.opened):
            for base, entry in list(table.items()):
                if base <= address < base + entry[1]:
                    return base, entry
        raise DriverError(f"nothing was allocated at {address:#x}")

    def devices(self) -> list[bytes]:
        return self.visible

    def device_of(self, address: int) -> int:
        return self._around(address)[1][3]

    def allocation(self, device: int, address: int) -> tuple[int, int]:
        base, entry = self._around(address)
        return base, entry[1]

    def synchronize(self, device: int, stream: int | None = None) -> None:
        self.note("synchronize", "all" if stream is None else str(stream))

    def export(self, device: int, base: int) -> bytes:
        if base not in self.own or not self.exportable:
            raise DriverError("export: invalid argument")
        self.note("export", self.own[base][0])
        return self.own[base][0].encode().ljust(HANDLE_SIZE, b"\0")

    def open(self, device: int, handle: bytes) -> int:
        name = handle.rstrip(b"\0").decode("ascii", "replace")
        uuid, _, rest = name.partition("-")
        if not rest or not (self.folder / name).exists():
            raise DriverError("open: invalid handle")
        if rest.partition("-")[0] == str(os.getpid()):
            raise DriverError("open: it was made in this very process")
        if any(name == entry[0] for entry in self.opened.values()):
            raise DriverError("open: already mapped")
        if uuid != self.visible[device].hex():
            raise DriverError("open: it is of another device")
        address, memory = self._map(name)
        self.opened[address] = name, len(memory), memory, device
        self.note("open", name)
        return address

    def close(self, device: int, address: int) -> None:
        name, _, memory, _ = self.opened.pop(address)
        memory.close()
        self.note("close", name)
        self.on_close()


class Array:
    """As of a library of device arrays: an array, or a view of one, with ``__cuda_array_interface__``."""

    def __init__(self, driver: StandIn, shape: tuple[int, ...], typestr: str = "<f8", stream: int | None = 7) -> None:
        self.driver = driver
        self.base: Array | None = None
        self.interface: dict[str, Any] = {"version": 3, "shape": shape, "typestr": typestr, "stream": stream}
        count = 1
        for length in shape:
            count *= length
        # With room before and behind it, as in the blocks that libraries cut their arrays from.
        self.address = self.block = driver.allocate(count * int(typestr[2:]) + 256)
        self.address += 128
        self.interface["data"] = (self.address, False)

    def view(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> Array:
        """Some of it: ``offset`` and ``strides`` in bytes."""
        view: Array = object.__new__(Array)
        view.driver = self.driver
        view.base = self
        view.address = self.address + offset
        view.interface = {**self.interface, "data": (view.address, False), "shape": shape, "strides": strides}
        return view

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface

    def __del__(self) -> None:
        if self.base is None:
            self.driver.free(self.block)


def address_of(array: Any) -> int:
    """Where the first item of an array is."""
    address, _ = array.__cuda_array_interface__["data"]
    return int(address)


def read(array: Any) -> list[float]:
    """The items of an array of doubles, in C order, as a kernel would read them."""
    interface = array.__cuda_array_interface__
    assert interface["typestr"] == "<f8"
    places = [address_of(array)]
    strides = interface.get("strides")
    if strides is None:
        step, found = 8, []
        for length in reversed(interface["shape"]):
            found.append(step)
            step *= length
        strides = tuple(reversed(found))
    for length, stride in zip(interface["shape"], strides):  # noqa: B905 - strict is 3.10, and workers may be 3.9
        places = [place + index * stride for place in places for index in range(length)]
    return [struct.unpack("<d", ctypes.string_at(place, 8))[0] for place in places]


def write(array: Any, first: float, index: int = 0) -> None:
    """Write an item of an array of doubles in a row."""
    ctypes.memmove(address_of(array) + 8 * index, struct.pack("<d", first), 8)
