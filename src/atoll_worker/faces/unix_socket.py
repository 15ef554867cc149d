# SPDX-License-Identifier: Apache-2.0
"""Where a socket of the file system stands: making it, and taking it away.

The same on both sides. What always holds here: nobody but the user's own processes can connect, not even for a moment;
a socket that somebody answers at is never taken away, also where several begin at once; what is no socket of ours is
left alone. What does not belong here: who connects.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_STREAM, socket  # `socket` itself would import `enum`

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Tuple

# As many callers as the kernel admits may wait to be accepted; it takes the less of this and `somaxconn`.
_BACKLOG = 4096


def listen(path: str, who: str) -> Tuple[socket, Place]:
    """A socket that listens at ``path``, for this user only, in the place of one that was left there by who was killed.

    Args:
        path: where.
        who: what errors call those who listen, such as ``"a worker"``.

    Returns:
        the socket, and where it stands.

    Raises:
        OSError: it cannot; ``FileExistsError`` where something stands there that is no socket, or somebody answers.
    """
    listener = socket(AF_UNIX, SOCK_STREAM)
    lock = -1
    try:
        if not path:  # the kernel would make up a name that is in no folder, and that every user may connect to
            raise OSError(2, "its path is empty")
        lock = _lock_folder(path)
        _clear(path, who)
        before = os.umask(0o177)  # it never exists with other permissions, not even for a moment
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        place = Place(path)  # before anybody finds somebody here, and may put another in its place
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.filename is not None:
            raise
        raise type(error)(error.errno or 0, f"cannot listen on a socket: {error.strerror or error}", path) from None
    except BaseException:
        listener.close()
        raise
    finally:
        if lock >= 0:
            os.close(lock)
    return listener, place


def _lock_folder(path: str) -> int:
    """A descriptor that keeps others from looking whether the socket is one to be replaced; -1 if there can be none.

    Without it, of two that begin at once the second would take away the first one's new socket.
    """
    import fcntl

    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1  # binding says what is wrong, if something is
    from time import sleep

    # Two seconds: whoever holds it longer is none of ours. Counted: in some time all of them may have stood still.
    for _ in range(400):
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            sleep(0.005)
    return folder


def _clear(path: str, who: str) -> None:
    """Remove the socket of somebody who was killed."""
    import errno
    import stat

    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # binding says what is wrong, if something is
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "something stands here that is no socket, so it is left alone", path)
    probe = socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
        words = f"{who} listens here already; give each a path of its own"
    except BlockingIOError:
        words = f"{who} listens here already, and so many wait for it that nobody else may"
    except ConnectionRefusedError:
        words = ""
    except OSError as error:
        words = f"a socket stands here that is not ours ({error.strerror})"
    finally:
        probe.close()
    if words:
        raise FileExistsError(errno.EEXIST, words, path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # somebody was faster


class Place:
    """Where a socket stands that was made just now."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)  # wherever the program goes
        self._identity = self._now()

    def _now(self) -> Optional[Tuple[int, int]]:
        try:
            now = os.lstat(self._path)
        except OSError:
            return None
        return now.st_ino, now.st_dev

    @property
    def is_ours(self) -> bool:
        """Whether the socket stands there still, and is not another that took its place."""
        return self._identity is not None and self._now() == self._identity

    def unlink(self) -> None:
        """Remove the socket, unless it is one that took its place meanwhile."""
        if self.is_ours:
            try:
                os.unlink(self._path)
            except OSError:
                pass  # somebody was faster
