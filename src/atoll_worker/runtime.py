# SPDX-License-Identifier: Apache-2.0
"""The life of a worker: load the service, then have calls answered (``channel``) until the host hangs up.

User code runs on the main thread, where signals, GUIs, CUDA and asyncio expect it. Its standard input is /dev/null,
its standard output and error are pipes that the host reads, and the protocol's descriptors are out of its way.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, socket
from _thread import allocate_lock, get_ident, start_new_thread

from . import completion, context, lifeline, logs, stacks, used_names, wire
from .channel import Channel, can_cross
from .connection import Connection, ConnectionClosed
from .context import WorkerLending
from .control import Control
from .errors import ProtocolError, describe_exception, format_exception, remember_source
from .interruption import MainThread, OtherThread
from .lane import Lane
from .references import INVOKE, READ
from .service import (
    DESCRIBE,
    FunctionTable,
    is_async_generator_function,
    is_coroutine_function,
    is_generator_function,
    is_idempotent,
    mark_idempotent,
    run_to_end,
    table_of_module,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Dict, List, Optional

    from .json_codec import Codec
    from .loans import Loans

# Descriptors are moved up here, where nothing that user code opens, or closes by number, is likely to be.
_FIRST_DESCRIPTOR = 200

# See atoll.processes.ends, which makes it.
_MESSAGES = SOCK_SEQPACKET if sys.platform == "linux" else SOCK_DGRAM
_FUTURE_ANNOTATIONS = 0x1000000  # __future__.annotations.compiler_flag, the same in every Python from 3.9 on


def main(argv: List[str]) -> None:
    """Run a worker.

    ``argv``: descriptors of the control connection, of the lifeline's read ends (``READ`` or ``READ:READ``) and of the
    socket that passes descriptors, whether to spin (``1`` or ``0``), then ``DATA:LANE`` for each data connection, the
    descriptors of its socket and its lane (-1 for none).
    """
    (control_fd,), lifeline_fds, (descriptors_fd,) = (out_of_reach(text) for text in argv[:3])
    pairs = [out_of_reach(pair) for pair in argv[4:]]
    lifeline.hold(*lifeline_fds)
    stacks.offer()
    stacks.tell_crashes()
    take_own_folder_off_path()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    control = Control(socket(AF_UNIX, SOCK_STREAM, 0, fileno=control_fd))
    connections = [_connection(data_fd, lane_fd, spin=argv[3] == "1") for data_fd, lane_fd in pairs]
    worker = Runtime(connections, control, descriptors_fd)
    control.start()
    try:
        if worker.load():
            worker.serve()
            worker.tear_down()
    except ConnectionClosed:
        worker.tear_down()
    worker.end_fork()
    # From here the interpreter ends as any program does: atexit handlers run, streams are flushed.


def _connection(data_fd: int, lane_fd: int, spin: bool) -> Connection:
    lane = None
    if lane_fd >= 0:
        lane = Lane(lane_fd, is_host=False)
        os.close(lane_fd)
    return Connection(socket(AF_UNIX, SOCK_STREAM, 0, fileno=data_fd), lane, "server", spin=spin)


def out_of_reach(argument: str) -> List[int]:
    """Move the descriptors of an argument to numbers that user code has no reason to touch; returns the numbers."""
    return [_out_of_reach(int(text)) for text in argument.split(":")]


def _out_of_reach(fd: int) -> int:
    if fd < 0:
        return fd
    import fcntl

    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR)
    except OSError:
        os.set_inheritable(fd, False)  # a low limit on open files
        return fd
    os.close(fd)
    return moved


def take_own_folder_off_path() -> None:
    """Nothing of this package's folder can be imported by user code as a module of its own."""
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    sys.argv[:] = [folder]


def collect_from_here() -> None:
    """Garbage is collected again, of what is made from here on. To be called before any of the user's code runs."""
    import gc

    gc.freeze()
    gc.enable()


def _when_idle() -> None:
    """After a tenth of a second without a call: what C code printed leaves its buffer, as lines of Python do."""
    import ctypes

    libc = ctypes.PyDLL(None)
    libc.fflush(ctypes.c_void_p.in_dll(libc, "stdout"))


def _prepare_when_idle(channel: Channel) -> None:
    """What calls in JSON need is imported before the first one comes, if that takes a while; but not during a start,
    where other workers may be starting, too."""
    otherwise = channel.connection.on_idle

    def prepare() -> None:
        channel.prepare_json()
        channel.connection.on_idle = otherwise
        if otherwise is not None:
            otherwise()

    channel.connection.on_idle = prepare


class Runtime:
    """One worker: its connections, and the function table behind them.

    With one connection, the main thread serves it. With several, each has a thread of its own, and the main thread runs
    the event loop, if there are coroutine functions.
    """

    def __init__(self, connections: List[Connection], control: Control, descriptors_fd: int) -> None:
        self.connections = connections
        self.control = control
        self._descriptors_fd = descriptors_fd
        self._loans: Optional[Loans] = None
        self._loans_lock = allocate_lock()
        self.table = FunctionTable()
        self.lending = WorkerLending(control.outbox.release)
        self._json: Optional[Codec] = None  # where the host is a program in another language
        self._functions: Dict[str, Callable[..., Any]] = {}
        self._loop: Optional[completion.Loop] = None
        self._main = MainThread()
        context.lendings.append(self.lending)
        loans = self.loans if descriptors_fd >= 0 else None
        for index, connection in enumerate(connections):
            interruption = self._main if len(connections) == 1 else OtherThread()
            channel = Channel(connection, index, self._functions, self.lending, loans, self.end_fork, interruption)
            context.channels.append(channel)
        connections[0].on_idle = _when_idle
        self._lock = allocate_lock()
        self._serving = len(connections)
        self._is_fork = False
        os.register_at_fork(after_in_child=self._mark_fork)
        control.on_cancel = self._cancel
        control.on_release = self._release
        control.on_forget = lambda number: self.loans().forget(number)

    def loans(self) -> Loans:
        """Segments lent to the host and borrowed from it. Made when the first array crosses: most workers never see
        one."""
        with self._loans_lock:
            if self._loans is None:
                from .loans import Loans

                sock = socket(AF_UNIX, _MESSAGES, 0, fileno=self._descriptors_fd)
                self._loans = Loans(sock, "the host")
                self._loans.is_trusted = True
                self._loans.on_forget = self.control.outbox.forget
            return self._loans

    def _mark_fork(self) -> None:
        self._is_fork = True
        for channel in context.channels:
            channel.is_fork = True

    def _cancel(self, index: int, call_id: int, wish: int) -> None:
        if index >= len(context.channels):
            return
        if wish == wire.WITHDRAW:
            context.channels[index].withdraw_cancel(call_id)
        else:
            context.channels[index].cancel(call_id, cooperative=wish == wire.TELL)

    def _release(self, number: int, received: int) -> None:
        """The host needs a lent object no more. Its destructor is user code: not for the control thread."""
        if len(context.channels) == 1:
            channel = context.channels[0]
            channel.pending.append(lambda: self._take_back(number, received))
            channel.poke()
        else:
            start_new_thread(self.lending.take_back, (number, received))

    def _take_back(self, number: int, received: int) -> None:
        self.lending.take_back(number, received)
        if self._loop is not None:
            self._loop.turn()

    def end_fork(self, error: Optional[BaseException] = None) -> None:
        """End this process if it is a child that user code forked and that fell through to atoll's own code.

        At once: what the worker set up is the worker's to tear down. ``error`` is what the child raised.
        """
        if not self._is_fork:
            return
        status = 0 if error is None else 1
        try:
            if error is not None:
                code = getattr(error, "code", None) if issubclass(type(error), SystemExit) else error
                if code is None or type(code) is int:
                    status = (code or 0) & 0xFF
                else:
                    sys.excepthook(type(error), error, error.__traceback__)
        finally:
            os._exit(status)

    # -- loading ---------------------------------------------------------------------------------------------

    def load(self) -> bool:
        """Greet the host, load the service it names and set it up. False if that failed, which was reported."""
        connection = self.connections[0]
        spec: Dict[str, Any] = self._greet(connection)
        phase = "start"
        collect_from_here()
        logs.install(self._send_record, spec["log_level"], context.call_id_now)
        try:
            for entry in spec["sys_path"]:
                if entry not in sys.path:
                    sys.path.append(entry)
            self.table = load_table(spec["entry"])
            if self.table.services:
                phase = "setup"
                self.control.tell_phase(phase)
                self.table.set_up()
            self._make_callable()
            self.end_fork()
        except BaseException as error:
            self.end_fork(error)
            skip = 2  # load() and load_table(); what is left out of user code's tracebacks is atoll's own
            report: Dict[str, Any] = {
                "phase": phase,
                "text": format_exception(error, skip),
                "error": describe_exception(error, can_cross, skip),
            }
            if self._json is not None:
                report["error"] = {name: report["error"][name] for name in ("type", "module", "message", "notes")}
            self._say(connection, wire.ERROR, report)
            return False
        ready = {
            "pid": os.getpid(),
            "version": tuple(sys.version_info[:3]),
            "executable": sys.executable,
            "prefix": sys.prefix,
            "sys_path": list(sys.path),
            "loaded": _places(spec["watch"]),
            "functions": sorted(self.table.functions),
            "streams": sorted(name for name, one in self.table.functions.items() if is_generator_function(one)),
            "idempotent": sorted(name for name, one in self.table.functions.items() if is_idempotent(one)),
            # Code that looks whether it was cancelled gets time to end by itself.
            "cooperative": "cancelled" in used_names,
        }
        self._say(connection, wire.READY, ready)
        return True

    def _greet(self, connection: Connection) -> Any:
        wire.check_hello(connection.receive().payload)
        connection.send(wire.HELLO, wire.RAW, wire.hello())
        frame = connection.receive()
        if frame.codec != wire.JSON:
            from .values import Decoder

            return Decoder(checked=False, side="the worker").decode(frame.payload, frame.buffers)
        # Always the same one: what LOAD, READY and LOG consist of is known, and importing another would take longer.
        from .json_codec import STANDARD, Codec

        self._json = Codec(STANDARD)
        return {"sys_path": (), "watch": (), "log_level": 30, **(self._json.decode(frame.payload) or {})}

    def _say(self, connection: Connection, kind: int, said: Dict[str, Any]) -> None:
        """READY or ERROR, in the codec of LOAD."""
        if self._json is not None:
            connection.send(kind, wire.JSON, self._json.encode(said, "the report"))
        else:
            from .values import Encoder

            encoder = Encoder()
            connection.send(kind, wire.PICKLE, encoder.encode(said), encoder.take_buffers())

    def _send_record(self, call_id: int, payload: bytes) -> None:
        if self._json is not None:
            # On whatever thread: with a decoder of its own.
            from .values import Decoder

            payload = self._json.encode(Decoder(checked=False, side="the worker").decode(payload), "record")
        self.control.outbox.send(wire.LOG, call_id, payload)

    def _make_callable(self) -> None:
        """What the host calls by name: the service's functions, and those that every worker has."""
        functions = self._functions
        for name, function in self.table.functions.items():
            is_coroutine = is_coroutine_function(function)
            if self._loop is None and (is_coroutine or is_async_generator_function(function)):
                self._loop = completion.Loop(self._on_task)
                completion.use(self._loop)
            if is_coroutine:
                function = run_to_end(function)
            functions[name] = function
        calls = context.Calls(functions)
        functions[DESCRIBE] = self.table.describe
        functions[INVOKE] = self.lending.serve
        functions[READ] = self.lending.read
        functions[context.WITH_META] = calls.with_meta
        functions[context.MAP] = calls.map

    @staticmethod
    def _on_task(task: Any) -> Any:
        channel = context.current_channel.get()
        if channel is None:
            return None
        before, channel.task = channel.task, task
        return before

    # -- calls -----------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer calls until the host closes the connections."""
        if self._json is not None:
            for channel in context.channels:
                _prepare_when_idle(channel)
        if len(context.channels) == 1:
            channel = context.channels[0]
            context.current_channel.set(channel)
            channel.thread = get_ident()
            self._main.serves(channel)
            loop = self._loop
            if loop is not None:
                channel.connection.on_wait = self._run_tasks
            channel.serve()
            return
        import threading

        threads = [
            threading.Thread(target=self._serve_on_thread, args=(channel,), name=f"atoll-call-{channel.index}")
            for channel in context.channels
        ]
        if self._loop is not None:
            self._loop.runs_always = True
        for thread in threads:
            thread.daemon = True
            thread.start()
        if self._loop is not None:
            self._loop.run_until(lambda: self._serving == 0)
        for thread in threads:
            thread.join()

    def _serve_on_thread(self, channel: Channel) -> None:
        context.current_channel.set(channel)
        try:
            if channel.index:
                self._greet(channel.connection)
                channel.connection.send(wire.READY, wire.RAW, b"")
            channel.serve()
        except (ConnectionClosed, ProtocolError):
            pass
        finally:
            with self._lock:
                self._serving -= 1
            if self._loop is not None and not self._serving:
                self._loop.stop()

    def _run_tasks(self) -> None:
        """Before the main thread sleeps for the next call: tasks that coroutines left behind go on."""
        loop = self._loop
        if loop is not None and not loop.is_running and loop.has_tasks:
            loop.run_until_readable(context.channels[0].connection.sock.fileno())

    def tear_down(self) -> None:
        """The host hung up: end what the service set up."""
        self.table.tear_down()
        if self._loop is not None:
            self._loop.close()


def _places(names: Dict[str, str]) -> Dict[str, str]:
    """Where those of the named modules that are loaded by now were loaded from."""
    places = {}
    for name in names:
        module = sys.modules.get(name)
        if module is not None:
            file = getattr(module, "__file__", None)
            if file is None:  # a namespace package
                file = next(iter(getattr(module, "__path__", ())), None)
            if file is not None:
                places[name] = file
    return places


# -- finding the code ----------------------------------------------------------------------------------------------


def load_table(entry: Dict[str, Any]) -> FunctionTable:
    """The function table of what the host asked for.

    ``entry`` is one of ``{"kind": "file", "path", "class"}``, ``{"kind": "module", "module", "class"}``,
    ``{"kind": "source", "source", "filename", "line", "name"}`` and ``{"kind": "extension", "path", "modules"}``.
    """
    kind = entry["kind"]
    if kind == "source":
        table = FunctionTable()
        function = load_source(entry)
        table.add(entry["name"], function)
        if entry["idempotent"]:
            mark_idempotent(function)
        return table
    if kind == "extension":
        from .extension import table_of_extension

        return table_of_extension(entry["path"], entry.get("modules"))
    module = load_file(entry["path"]) if kind == "file" else _import(entry["module"])
    return table_of_module(module, entry["class"])


def _import(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]


def load_file(path: str) -> ModuleType:
    """Import a file as a module named after it, or as ``atoll_service_NAME`` where that name is taken.

    Its folder is put at the end of ``sys.path``: modules beside it can be imported, but never stand in for the
    standard library or a package of the environment.
    """
    from _frozen_importlib import module_from_spec
    from _frozen_importlib_external import SourceFileLoader, spec_from_file_location

    class Loader(SourceFileLoader):
        """Tells a file from what was compiled of it by microseconds. By seconds, as Python does, a file of the same
        size that is written and loaded twice within one would be loaded as it was before."""

        def path_stats(self, path: str) -> Any:
            stats = dict(super().path_stats(path))
            stats["mtime"] = int(stats["mtime"] * 1e6)
            return stats

    folder, _, file = path.rpartition("/")
    if folder not in sys.path:
        sys.path.append(folder)
    name = file[:-3] if file.endswith(".py") else file
    if name in sys.modules or name in sys.builtin_module_names or not name.isidentifier() or name in _standard_names():
        name = "atoll_service_" + "".join(c if c.isalnum() else "_" for c in name)
    spec = spec_from_file_location(name, path, loader=Loader(name, path))
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _standard_names() -> Any:
    return getattr(sys, "stdlib_module_names", ())  # from Python 3.10 on


def load_source(entry: Dict[str, Any]) -> Callable[..., Any]:
    """A function from its text. Its lines keep the file name and numbers they have in the user's file."""
    module = type(sys)(entry["module"])
    module.__file__ = entry["filename"]
    # Under a name of its own: it must not stand in for the module that the text was taken from.
    sys.modules["atoll_function"] = module
    text = "\n" * (entry["line"] - 1) + entry["source"]
    remember_source(entry["filename"], text)
    # Annotations may name what exists only over there, so they are not evaluated.
    code = compile(text, entry["filename"], "exec", flags=_FUTURE_ANNOTATIONS, dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - running the user's code is what a worker is for
    function: Callable[..., Any] = module.__dict__[entry["name"]]
    return function
