# SPDX-License-Identifier: Apache-2.0
"""Nameless shared memory from the operating system: created, sealed, checked. The same on both sides.

On Linux it is a memfd: it never had a name, so nothing can be left behind, and it is sealed against any change of
size, so that touching a mapping of it never raises SIGBUS, whatever the process at the other end does. Elsewhere
(macOS) it is a POSIX shared memory object whose name is taken away at once; such memory cannot be sealed, so there the
other end has to be trusted not to shrink it. Only the former was tested on a system that people use it on: the POSIX
calls are tested on Linux, where ATOLL_SHARED_MEMORY=posix in the environment has them used.
"""

from __future__ import annotations

import os
from mmap import PAGESIZE

from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Of the memory behind a descriptor, as /proc/PID/fd shows it after "/memfd:"; the id of the process that made it comes
# after that.
NAME = "atoll-segment"

_SEAL_SHRINK, _SEAL_GROW, _SEAL_FUTURE_WRITE = 0x2, 0x4, 0x10
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034  # `fcntl` has them from Python 3.8 on, where the C library had


def has_memfd() -> bool:
    """Whether memory can be sealed here."""
    return hasattr(os, "memfd_create") and os.environ.get("ATOLL_SHARED_MEMORY") != "posix"


IS_SEALED = has_memfd()


def create(size: int, posix: bool = not IS_SEALED) -> int:
    """A descriptor (close-on-exec) of ``size`` bytes of zeroed memory that can neither shrink nor grow.

    Args:
        size: bytes, a multiple of the page size.
        posix: by ``shm_open`` instead of a memfd.

    Raises:
        OSError: there are no more descriptors, or there is no such memory.
    """
    if posix:
        return _create_posix(size)
    fd = os.memfd_create(f"{NAME}-{os.getpid()}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        _seal(fd, _SEAL_SHRINK | _SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _create_posix(size: int) -> int:
    from importlib import import_module

    posix: Any = import_module("_posixshmem")  # the C part of multiprocessing.shared_memory
    for attempt in range(100):
        # Short: macOS takes 31 characters.
        name = f"/atoll-{os.getpid():x}-{int.from_bytes(os.urandom(4), 'little'):x}"
        try:
            fd: int = posix.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)
        except FileExistsError:
            if attempt == 99:
                raise
            continue
        break
    try:
        posix.shm_unlink(name)  # a process killed between these two lines leaves a name without memory
        os.set_inheritable(fd, False)
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal_against_writers(fd: int) -> None:
    """From now on nobody can write to it who cannot already: mappings made before stay writable."""
    if IS_SEALED:
        try:
            _seal(fd, _SEAL_FUTURE_WRITE)
        except OSError:
            pass  # it is no memfd; or the kernel is older than 5.1


def _seal(fd: int, seals: int) -> None:
    import fcntl

    fcntl.fcntl(fd, _F_ADD_SEALS, seals)


def check(fd: int, size: int, sealed: bool = IS_SEALED) -> None:
    """That a descriptor which came from another process is memory of this size, and stays so.

    Args:
        fd: the descriptor.
        size: bytes that there must be.
        sealed: it must be sealed against changes of its size.

    Raises:
        DecodeError: it is not.
    """
    import stat

    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("what was passed as a segment is no memory")
    if status.st_size < size or size <= 0:
        raise DecodeError(f"a segment of {size:,} bytes was announced, and one of {status.st_size:,} came")
    if sealed:
        import fcntl

        try:
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
        except OSError:
            raise DecodeError("what was passed as a segment cannot be sealed, so it could shrink") from None
        if seals & (_SEAL_SHRINK | _SEAL_GROW) != _SEAL_SHRINK | _SEAL_GROW:
            raise DecodeError("a segment came that is not sealed against changes of its size")
        # Huge pages are given when they are touched, if there are any left: else that is a SIGBUS.
        if os.fstatvfs(fd).f_bsize != PAGESIZE:
            raise DecodeError("a segment came that consists of huge pages")
