# SPDX-License-Identifier: Apache-2.0
"""``run_worker``: a program that serves its exposed functions over pyproc's wire, on a Unix socket.

Functions run on the main thread, one at a time, as pyproc's own worker has it: what is not made for threads needs no
locks, and signals, CUDA and asyncio find what they expect. Several workers are several processes.

What always holds here: nobody but the user's own processes can connect, ever; a socket that somebody answers at is
never taken away; and no socket of this worker's is left when it ends in order. What does not belong here: calls
(``pyproc_server``), the making of a socket (``unix_socket``).
"""

from __future__ import annotations

import os
import sys

from .. import context
from ..errors import AtollError
from ..json_codec import AUTOMATIC, Codec
from ..service import table_of_program
from . import unix_socket
from .pyproc_call import Stop
from .pyproc_log import LOG_VARIABLE, logger, say, set_level
from .pyproc_server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional, Tuple

    from ..service import FunctionTable

SOCKET_VARIABLE = "PYPROC_SOCKET_PATH"
CODEC_VARIABLE = "PYPROC_CODEC_TYPE"


def run_worker(socket_path: Optional[str] = None, codec_type: Optional[str] = None) -> None:
    """Serve the functions that this program exposed, over pyproc's wire, until SIGINT or SIGTERM.

    Every function marked with ``@expose`` so far can be called, wherever it was defined, and so can the methods of the
    ``Service`` classes of the program's main module. A function gets the request's body, and what it returns is the
    body of the reply. Functions run on the main thread, one at a time; ``health`` is answered also while one runs.

    Args:
        socket_path: where to listen; if None, what the variable ``PYPROC_SOCKET_PATH`` says. Only the user's own
            processes can connect. What a worker left there that was killed is replaced.
        codec_type: ``"json"``, ``"msgspec"`` or ``"orjson"``, or ``"auto"`` for msgspec or orjson where they are
            there; if None, what the variable ``PYPROC_CODEC_TYPE`` says, or else ``"auto"``.

    Raises:
        ValueError: no path is given, or there is no such codec.
        ImportError: the codec's library is not there.
        OSError: the path cannot be listened on; ``FileExistsError`` where something stands there that is no socket, or
            a worker answers there.
        AtollError: this is a worker of atoll's already, or not the main thread.
    """
    path = socket_path or os.environ.get(SOCKET_VARIABLE)
    if not path:
        raise ValueError(f"run_worker() needs a path to listen on: give it one, or set {SOCKET_VARIABLE}")
    codec = Codec(codec_type or os.environ.get(CODEC_VARIABLE) or AUTOMATIC)
    if context.is_worker():
        raise AtollError("this program is served by atoll already: call run_worker() under `if __name__ == '__main__'`")
    if not _is_main_thread():
        raise AtollError("run_worker() serves on the main thread, and this is another")
    set_level(os.environ.get(LOG_VARIABLE))
    table = table_of_program(sys.modules["__main__"])
    if not table.functions:
        logger().warning("nothing is exposed: mark functions with @expose before run_worker()")
    table.set_up()
    try:
        _serve(os.fspath(path), table, codec)
    finally:
        table.tear_down()


def _is_main_thread() -> bool:
    import _signal  # type: ignore[import-not-found]  # `signal` would import `enum`, and `threading` takes a millisecond

    try:
        _signal.set_wakeup_fd(_signal.set_wakeup_fd(-1))  # left as it is, where that is allowed at all
    except ValueError:
        return False
    return True


def _serve(path: str, table: FunctionTable, codec: Codec) -> None:
    server = Server(table, codec)
    parent = os.getppid()
    try:
        with _Signals(server):
            listener, place = unix_socket.listen(path, "a worker")  # from now on somebody can connect, and also end it
            say("listening at %s, JSON by %s, functions: %s", path, codec.name, ", ".join(sorted(server.functions)))
            try:
                server.serve(listener, lambda: _is_forgotten(place, parent))
            except Stop:
                pass
            finally:
                listener.close()
                place.unlink()
    finally:
        server.close()


def _is_forgotten(place: unix_socket.Place, parent: int) -> bool:
    """Whether nobody can find a worker any more, nor end it: its parent, who started it, has ended, and its socket is
    gone, or is another's. So ends the worker of a program that was killed, once the next one has taken the path."""
    return os.getppid() != parent and not place.is_ours


class _Signals:
    """While the worker serves, SIGINT and SIGTERM end it, unless the program has its own ways with them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before: List[Tuple[int, Any]] = []
        self._pipe: Tuple[int, ...] = ()

    def __enter__(self) -> None:
        import _signal

        # SIGINT also where it is ignored, as in what a shell started in the background: pyproc's clients send it.
        for number, ours in (
            (_signal.SIGINT, (_signal.default_int_handler, _signal.SIG_IGN, _signal.SIG_DFL)),
            (_signal.SIGTERM, (_signal.SIG_DFL,)),
        ):
            before = _signal.getsignal(number)
            if before in ours:
                self._before.append((number, before))
                _signal.signal(number, self._stop)
        self._have_main_thread_woken()

    def _have_main_thread_woken(self) -> None:
        """A signal may reach another thread, or this one a moment before it goes to sleep: then nothing else would
        wake it."""
        import _signal

        before = _signal.set_wakeup_fd(-1)
        if before != -1:  # the program's own
            _signal.set_wakeup_fd(before, warn_on_full_buffer=False)
            return
        self._pipe = os.pipe()
        for fd in self._pipe:
            os.set_blocking(fd, False)
        _signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._server.wake_at(self._pipe[0])

    def _stop(self, number: int, frame: Any) -> None:
        server = self._server
        if server.is_fork:  # a child of user code's, and no worker
            self.__exit__()
            os.kill(os.getpid(), number)
            return
        server.stop()

    def __exit__(self, *_: object) -> None:
        import _signal

        for number, before in self._before:
            _signal.signal(number, before)
        if self._pipe:
            current = _signal.set_wakeup_fd(-1)
            if current not in (-1, self._pipe[1]):
                _signal.set_wakeup_fd(current)  # the program's own, since
            for fd in self._pipe:
                os.close(fd)
