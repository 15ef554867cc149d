# SPDX-License-Identifier: Apache-2.0
"""The serve loop of a worker: load the service, then answer calls on the main thread until the host hangs up.

User code runs on the main thread, where signals, GUIs, CUDA and asyncio expect it. Its standard input is /dev/null,
its standard output and error are pipes that the host reads, and the protocol's descriptors are out of its way.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket

from . import lifeline, stacks, wire
from .connection import Connection, ConnectionClosed
from .control import Control
from .errors import MAX_PART, ProtocolError, describe_exception, format_exception, remember_source
from .lane import Lane
from .service import DESCRIBE, FunctionTable, table_of_module
from .values import Decoder, Encoder, decode_json, encode_json, explain_unencodable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Dict, List, Optional

    from .wire import Bytes

# Descriptors are moved up here, where nothing that user code opens, or closes by number, is likely to be.
_FIRST_DESCRIPTOR = 200

_FUTURE_ANNOTATIONS = 0x1000000  # __future__.annotations.compiler_flag, the same in every Python from 3.9 on

_CALL_LABELS = (("args", 1), ("kwargs", 2))


def main(argv: List[str]) -> None:
    """Run a worker.

    ``argv``: descriptors of the control connection and the lifeline, whether to spin (``1`` or ``0``), then
    ``DATA:LANE`` for each data connection, the descriptors of its socket and its lane (-1 for none).
    """
    control_fd, lifeline_fd = (_out_of_reach(int(text)) for text in argv[:2])
    pairs = [[_out_of_reach(int(text)) for text in pair.split(":")] for pair in argv[3:]]
    data_fd, lane_fd = pairs[0]
    lifeline.hold(lifeline_fd)
    stacks.offer()
    stacks.tell_crashes()
    _take_own_folder_off_path()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    control = Control(socket(AF_UNIX, SOCK_STREAM, 0, fileno=control_fd))
    control.start()
    lane = None
    if lane_fd >= 0:
        lane = Lane(lane_fd, is_host=False)
        os.close(lane_fd)
    connection = Connection(socket(AF_UNIX, SOCK_STREAM, 0, fileno=data_fd), lane, "server", spin=argv[2] == "1")
    connection.on_idle = _when_idle
    worker = Runtime(connection, control)
    try:
        if worker.load():
            worker.serve()
            worker.table.tear_down()
    except ConnectionClosed:
        worker.table.tear_down()
    worker.end_fork()
    # From here the interpreter ends as any program does: atexit handlers run, streams are flushed.


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


def _take_own_folder_off_path() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    sys.argv[:] = [folder]


def _when_idle() -> None:
    """After a tenth of a second without a call: what C code printed leaves its buffer, as lines of Python do."""
    import ctypes

    libc = ctypes.PyDLL(None)
    libc.fflush(ctypes.c_void_p.in_dll(libc, "stdout"))


class Runtime:
    """One worker: a connection, and the function table behind it."""

    def __init__(self, connection: Connection, control: Control) -> None:
        self.connection = connection
        self.control = control
        self.table = FunctionTable()
        self._encoder = Encoder()
        # What the host sends is not checked opcode by opcode: it decides what runs here anyway.
        self._decoder = Decoder(checked=False, side="the worker")
        # In a child that user code forked: it has the connection too, and must not answer for the worker.
        self._is_fork = False
        os.register_at_fork(after_in_child=self._mark_fork)

    def _mark_fork(self) -> None:
        self._is_fork = True

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
        connection = self.connection
        wire.check_hello(connection.receive().payload)
        connection.send(wire.HELLO, wire.RAW, wire.hello())
        frame = connection.receive()
        spec: Dict[str, Any] = self._decoder.decode(frame.payload, frame.buffers)
        phase = "start"
        try:
            for entry in spec["sys_path"]:
                if entry not in sys.path:
                    sys.path.append(entry)
            self.table = load_table(spec["entry"])
            if self.table.services:
                phase = "setup"
                self.control.tell_phase(phase)
                self.table.set_up()
            self.end_fork()
        except BaseException as error:
            self.end_fork(error)
            skip = 2  # load() and load_table(); what is left out of user code's tracebacks is atoll's own
            report = {
                "phase": phase,
                "text": format_exception(error, skip),
                "error": describe_exception(error, self._can_cross, skip),
            }
            payload = self._encoder.encode(report)
            connection.send(wire.ERROR, wire.PICKLE, payload, self._encoder.take_buffers())
            return False
        self.table.functions[DESCRIBE] = self.table.describe
        ready = {
            "pid": os.getpid(),
            "version": tuple(sys.version_info[:3]),
            "executable": sys.executable,
            "prefix": sys.prefix,
            "sys_path": list(sys.path),
            "loaded": _places(spec["watch"]),
            "functions": sorted(name for name in self.table.functions if name != DESCRIBE),
        }
        connection.send(wire.READY, wire.PICKLE, self._encoder.encode(ready))
        return True

    def _can_cross(self, value: object) -> bool:
        try:
            encoder = Encoder()
            size = len(encoder.encode(value)) + sum(view.nbytes for view in encoder.take_buffers())
        except Exception:
            return False
        return size <= MAX_PART

    # -- calls -----------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer calls until the host closes the connection."""
        receive = self.connection.receive_call
        reply = self.connection.reply
        decode = self._decoder.decode
        encoder = self._encoder
        functions = self.table.functions
        pickle = wire.PICKLE
        result_kind = wire.RESULT
        while True:
            try:
                _, codec, payload, buffers = receive()
            except ConnectionClosed:
                return
            except ProtocolError:
                sys.excepthook(*sys.exc_info())  # to the log; the host sees the connection end
                return
            if codec != pickle:
                self._answer_json(payload)
                continue
            try:
                name, args, kwargs = decode(payload, buffers, _CALL_LABELS)
            except BaseException as error:
                self._refuse("DecodeError", str(error))
                continue
            function = functions.get(name)
            if function is None:
                self._refuse("FunctionNotFound", name)
                continue
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                self.end_fork(error)
                self._reply_error(error)
            else:
                if self._is_fork:
                    self.end_fork()
                try:
                    payload = encoder.encode(result)
                    reply(result_kind, pickle, payload, encoder.take_buffers() if encoder.has_buffers else ())
                except ConnectionClosed:
                    return
                except BaseException as error:
                    self._refuse_result(error, result)
            # Nothing of a call stays alive while waiting for the next one.
            payload, buffers = b"", ()
            name = args = kwargs = result = function = None

    def _reply_error(self, error: BaseException) -> None:
        """The function raised."""
        described = describe_exception(error, self._can_cross, 1)
        described["text"] = format_exception(error, 1)
        self._reply(described)

    def _refuse(self, error: str, message: str) -> None:
        """The function was not reached, or its result cannot cross: the host raises its own error of this name."""
        self._reply({"atoll": error, "message": message})

    def _refuse_result(self, error: BaseException, result: object) -> None:
        """The result cannot be encoded; looking for the reason runs code of its class, which may do anything."""
        try:
            message = str(explain_unencodable(error, (("result", result),)))
        except BaseException as strange:
            message = f"result cannot be passed, nor can it be said why: {type(strange).__name__}"
        self._refuse("EncodeError", message)

    def _reply(self, described: Dict[str, Any]) -> None:
        self.end_fork()
        encoder = self._encoder
        try:
            payload = encoder.encode(described)
        except BaseException as strange:  # a part that could be encoded when it was tried
            message = f"the worker's error cannot be passed: {type(strange).__name__}"
            payload = encoder.encode({"atoll": "EncodeError", "message": message})
        try:
            self.connection.reply(wire.ERROR, wire.PICKLE, payload, encoder.take_buffers())
        except ConnectionClosed:
            pass  # the next receive() says so too

    def _answer_json(self, request: Bytes) -> None:
        kind = wire.RESULT
        try:
            call = decode_json(request)
            function = self.table.functions[call["function"]]
            result = function(*call.get("args", ()), **call.get("kwargs", {}))
            self.end_fork()
            payload = encode_json(result, "result")
        except BaseException as error:
            self.end_fork(error)
            kind = wire.ERROR
            described = describe_exception(error, self._can_cross, 1)
            names = ("type", "module", "message", "notes")
            payload = encode_json(
                {**{name: described[name] for name in names}, "traceback": format_exception(error, 1)},
                "error",
            )
        try:
            self.connection.reply(kind, wire.JSON, payload)
        except ConnectionClosed:
            pass


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

    ``entry`` is one of ``{"kind": "file", "path", "class"}``, ``{"kind": "module", "module", "class"}`` and
    ``{"kind": "source", "source", "filename", "line", "name"}``.
    """
    kind = entry["kind"]
    if kind == "source":
        table = FunctionTable()
        table.add(entry["name"], load_source(entry))
        return table
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
    from _frozen_importlib_external import spec_from_file_location

    folder, _, file = path.rpartition("/")
    if folder not in sys.path:
        sys.path.append(folder)
    name = file[:-3] if file.endswith(".py") else file
    if name in sys.modules or name in sys.builtin_module_names or not name.isidentifier() or name in _standard_names():
        name = "atoll_service_" + "".join(c if c.isalnum() else "_" for c in name)
    spec = spec_from_file_location(name, path)
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
