# SPDX-License-Identifier: Apache-2.0
"""The cache on disk: what lies where, locks between builders and users, records that appear whole or not at all.

::

    <cache>/
      requests/<digest>.json        what was asked for -> key, lock; the index that makes opening instant
      environments/<key>/           published by one rename, never changed afterwards
        venv/                         the virtual environment itself
        lock.txt                      what was installed
        record.json                   the completion marker: everything an Environment is made of
        used                          its time is the last use; users hold a shared flock on it
      building/<key>-<random>/      half-made, or on its way out; swept by whoever holds the key's lock next
      probes/<hash>.json            what an interpreter said of itself, by path, inode, size and time of its file
      locks/<name>                  flocks of builders

What always holds here: a lock is the kernel's (flock), so the death of its holder frees it; a builder's lock is
inherited by the installer it starts, so it is free only when that one has stopped writing too. What does not belong
here: what a record means. (``fcntl`` is imported where it is used: Windows has none, and importing atoll works there.)
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import BuildError
from .environment import Use

MARKER = "record.json"

_uses: weakref.WeakValueDictionary[str, Use] = weakref.WeakValueDictionary()
_uses_lock = threading.Lock()


def cache_folder() -> str:
    """``ATOLL_CACHE_DIR``, else ``XDG_CACHE_HOME/atoll``, else ``~/.cache/atoll``; absolute, not necessarily there."""
    folder = os.environ.get("ATOLL_CACHE_DIR")
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME") or ""
        # The XDG specification has a relative path ignored.
        folder = os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "atoll")
    return os.path.abspath(os.path.expanduser(folder))


@contextmanager
def usable_cache(who: str = "") -> Iterator[None]:
    """Have an atoll error say what the disk refuses within the block: a folder nobody may write, a disk that is full.

    Args:
        who: what the message begins with.

    Raises:
        BuildError: something could not be read or written; the message names the folder and what to do.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.filename is not None and os.fsdecode(error.filename) != cache_folder():
            why += f" ({os.fsdecode(error.filename)})"
        raise BuildError(
            f"{who}the cache folder {cache_folder()} cannot be used: {why}; "
            "set ATOLL_CACHE_DIR to a folder that can be written"
        ) from error


def environment_folder(key: str) -> str:
    """Where the environment of a key is, or would be."""
    return os.path.join(cache_folder(), "environments", key)


def request_file(digest: str) -> str:
    """Where the record of a request is, or would be."""
    return os.path.join(cache_folder(), "requests", digest + ".json")


def read_record(path: str) -> dict[str, Any] | None:
    """A JSON record, or None if it is not there or not whole (a disk that filled up, a hand that edited)."""
    import json

    try:
        with open(path, "rb") as file:
            record = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_record(path: str, record: dict[str, Any]) -> None:
    """Write a record so that a reader sees the old one, or the new one whole.

    Only its owner may read it: an index URL may hold a password.
    """
    import json

    folder = os.path.dirname(path)
    make_folder(folder)
    temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def make_folder(path: str) -> None:
    """Make a folder of the cache, and mark the cache as one (for backup programs) when it is new."""
    if os.path.isdir(path):
        return
    root = cache_folder()
    if not os.path.isdir(root):
        os.makedirs(root, mode=0o700, exist_ok=True)
        with open(os.path.join(root, "CACHEDIR.TAG"), "w", encoding="ascii") as file:
            file.write("Signature: 8a477f597d28d172789f06886806bc55\n# atoll's cache; see `atoll env list`\n")
    os.makedirs(path, exist_ok=True)


def remove(path: str) -> None:
    """Remove a file or a whole folder; no error if it is not there."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        os.unlink(path)
    except OSError:
        pass


class Lock:
    """A file lock between threads and processes, held while the object is entered.

    Attributes:
        fd: to be inherited by children that write on the holder's behalf.
    """

    def __init__(self, name: str) -> None:
        self._path = os.path.join(cache_folder(), "locks", name)
        self.fd = -1

    def acquire(self, *, wait: bool = True) -> bool:
        """Take it; with ``wait=False``, say False instead of waiting."""
        import fcntl

        make_folder(os.path.dirname(self._path))
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(fd)
                return False
            except BaseException:
                os.close(fd)
                raise
            if is_file_of(fd, self._path):  # else it was swept while we waited, and guards nothing
                self.fd = fd
                return True
            os.close(fd)

    def release(self) -> None:
        """Give it back, even if a child that inherited it should still live."""
        import fcntl

        fd, self.fd = self.fd, -1
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def is_file_of(fd: int, path: str) -> bool:
    """Whether an open file is still the one at this path."""
    try:
        here, there = os.fstat(fd), os.stat(path)
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def mark_used(folder: str) -> Use | None:
    """Mark an environment as in use by this process, now; None if it is not there or is being removed.

    One lock for all that share it in this process: a thousand functions need one file descriptor.
    """
    import fcntl

    path = os.path.join(folder, "used")
    with _uses_lock:
        use = _uses.get(path)
        if use is None or not is_file_of(use._fd, path):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough to lock, and a cache may be read-only
            except OSError:
                return None
            try:
                # Others hold it exclusively for moments only: prune while it renames, list while it looks.
                fcntl.flock(fd, fcntl.LOCK_SH)
            except OSError:
                os.close(fd)  # a file system without locks: the way through the builder's lock says so
                return None
            except BaseException:
                os.close(fd)
                raise
            use = Use(fd)
            if not is_file_of(fd, path):
                return None
            _uses[path] = use
        try:
            os.utime(use._fd)
        except OSError:
            pass  # a cache on a read-only disk is used all the same
        return use


@contextmanager
def unused(folder: str) -> Iterator[bool]:
    """Whether nobody uses an environment; if so, nobody can begin to within the block."""
    import fcntl

    try:
        fd = os.open(os.path.join(folder, "used"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield True  # without the file it was never complete, or is half removed
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def new_build_folder(key: str) -> str:
    """A fresh folder to build a key in, on the same file system as where it will be published."""
    path = os.path.join(cache_folder(), "building", f"{key}-{os.getpid()}-{os.urandom(4).hex()}")
    make_folder(path)
    return path


def build_folders(key: str | None = None) -> list[str]:
    """Half-made folders, of one key or of all. Those whose key's lock is free are leftovers."""
    building = os.path.join(cache_folder(), "building")
    try:
        names = sorted(os.listdir(building))
    except OSError:
        return []
    return [os.path.join(building, name) for name in names if key is None or name.startswith(key + "-")]


def retire(folder: str, key: str) -> str:
    """Take a published environment out of sight in one step. Returns where it is now, to be removed."""
    target = new_build_folder(key)
    os.rename(folder, os.path.join(target, "retired"))
    return target
