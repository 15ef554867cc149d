# SPDX-License-Identifier: Apache-2.0
"""The worker's end of one data connection: serving calls on it, and calling back while one is open.

One thread serves a channel. During a call any thread of the worker may call back on it (``ask``); a lock keeps the
conversation to one speaker, and the serving thread holds it whenever it is not in user code. While an answer is waited
for, the host may call in turn; that is served by whoever waits, nested to any depth.

A call is interrupted by raising ``Cancelled`` in its thread, but only in user code: never while a frame is being moved.
"""

from __future__ import annotations

import os
import sys
from _collections import deque  # type: ignore[import-not-found]  # `collections` takes milliseconds
from _thread import RLock, allocate_lock, get_ident
from time import monotonic

from . import wire
from .connection import ConnectionClosed
from .errors import (
    MAX_PART,
    AtollError,
    Cancelled,
    DecodeError,
    EncodeError,
    LocalProtocolError,
    ProtocolError,
    SegmentsExhausted,
    describe_exception,
    format_exception,
)
from .references import INVOKE, NO_CALL
from .streams import MAX_BATCH, Outlet, is_iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Task
    from typing import Any, Callable, Deque, Dict, NoReturn, Optional, Sequence, Tuple, Union

    from .connection import Connection
    from .interruption import MainThread, OtherThread
    from .json_codec import Codec
    from .loans import Loans
    from .references import Lending
    from .values import Decoder, Encoder
    from .wire import Bytes

    Answer = Tuple[int, int, Bytes, Sequence[Bytes]]  # kind, codec, payload, buffers

# Seconds after which a thread that waits for its turn looks whether the call is still in progress.
_LOOK_AGAIN = 0.05
_CALL_LABELS = (("args", 1), ("kwargs", 2))
_CALL_NUMBER = wire.CALL_NUMBER
# What callers who speak JSON ask of a stream: its next items, its end.
NEXT = "__next__"
CLOSE = "__close__"
# Of both packages, which lie side by side: the host describes what its callbacks raise in the same way.
_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))
_OWN_FOLDERS = (_OWN_FOLDER + os.sep, os.path.join(os.path.dirname(_OWN_FOLDER), "atoll") + os.sep)


class Channel:
    """One data connection of a worker.

    Args:
        connection: as it is after the worker was loaded.
        index: which of the worker's connections it is.
        functions: what can be called, by name.
        lending: what is lent to and borrowed from the host.
        loans: gives the same for segments; None if no descriptors can be passed.
        end_fork: ends this process if it is a child that user code forked.
        interruption: how to interrupt the thread that serves this channel.

    Attributes:
        is_fork: whether this process is a child that user code forked: it has the connection too, and must not answer
            for the worker.
        meta: what the caller said of the call in progress.
        cancelled_call: id of the call that was cancelled last.
        interrupted_call: id of the call that is to be interrupted.
        is_json: the call in progress came in JSON, from a caller who cannot be called back.
        deadline: ``time.monotonic()`` at which its caller gives it up; 0.0 if that is not known.
        unsettled: an interruption was sent, or is being sent, to the serving thread.
    """

    def __init__(
        self,
        connection: Connection,
        index: int,
        functions: Dict[str, Callable[..., Any]],
        lending: Lending,
        loans: Optional[Callable[[], Loans]],
        end_fork: Callable[[Optional[BaseException]], None],
        interruption: Union[MainThread, OtherThread],
    ) -> None:
        self.connection = connection
        self.index = index
        self.functions = functions
        self.meta: Optional[Dict[str, Any]] = None
        self.in_user_code = False
        self.thread = 0
        self.task: Optional[Task[Any]] = None  # that runs the coroutine of the call
        self.cancelled_call = 0
        self.interrupted_call = 0
        self.unsettled = False
        self.is_json = False
        self.deadline = 0.0
        self._json: Optional[Codec] = None
        self._streams: Dict[int, Outlet] = {}  # of callers who speak JSON, by number
        self._last_stream = 0
        self._cancelled_task = 0  # id of the call whose task was cancelled
        self.pending: Deque[Callable[[], None]] = deque()  # to be done between calls, on the serving thread
        self.is_fork = False
        self._end_fork = end_fork
        self._interruption = interruption
        self._lending = lending
        self._loans = loans
        self._python_values: Optional[Tuple[Encoder, Decoder]] = None
        self._turn = RLock()  # held by whoever moves frames; it knows its owner, which an interruption makes us forget
        self._is_broken = False  # the host hung up on somebody who called back
        self._waiting: Deque[Any] = deque()  # locks of those whose answer must wait for that of a deeper call
        connection.before_deep_reply = self._wait_for_deeper

    # Made for the first value: who calls in JSON never needs them, nor what takes milliseconds to import for them.

    @property
    def _encoder(self) -> Encoder:
        return (self._python_values or self._make_values())[0]

    @property
    def _decoder(self) -> Decoder:
        return (self._python_values or self._make_values())[1]

    def _make_values(self) -> Tuple[Encoder, Decoder]:
        from .values import Decoder, Encoder

        encoder = Encoder(self._lending, self._loans)
        encoder.announce = self.connection.announce
        # What the host sends is not checked opcode by opcode: it decides what runs here anyway.
        decoder = Decoder(checked=False, side="the worker", lending=self._lending, loans=self._loans)
        self._python_values = encoder, decoder
        return encoder, decoder

    @property
    def call_number(self) -> int:
        """Number of the host's call in progress; 0 when there is none."""
        conversation = self.connection.conversation
        return conversation.call_id & _CALL_NUMBER if conversation.depth else 0

    def concerns(self, call_id: int) -> bool:
        """Whether the call of this id is in progress: the innermost one, or one around it."""
        conversation = self.connection.conversation
        now = conversation.call_id
        return 0 < call_id <= now and (now ^ call_id) & _CALL_NUMBER == 0 and conversation.depth != 0

    # -- serving ---------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer calls until the host closes the connection."""
        self.thread = get_ident()
        self._turn.acquire()
        while True:
            try:
                self._serve()
                return
            except Cancelled as late:  # struck once more, in the very moment of leaving user code
                self._reply(*self._raised(self._come_back(late)))

    def _serve(self) -> None:
        receive = self.connection.receive_call
        reply = self.connection.reply
        decode: Optional[Callable[..., Any]] = None
        functions = self.functions
        pickle = wire.PICKLE
        result_kind = wire.RESULT
        leave, enter = self._turn.release, self._turn.acquire
        while True:
            try:
                _, codec, payload, buffers = receive()
            except ConnectionClosed:
                return
            except ProtocolError:
                sys.excepthook(*sys.exc_info())  # to the log; the host sees the connection end
                return
            if codec != pickle:
                self._reply(*self._answer_json(payload))
                continue
            if decode is None:
                encoder, decode = self._encoder, self._decoder.decode
            try:
                name, args, kwargs = decode(payload, buffers, _CALL_LABELS)
                function = functions[name]
            except BaseException as error:
                self._reply(*self._not_reached(error))
                continue
            try:
                leave()
                self.in_user_code = True
                result = function(*args, **kwargs)
                args = kwargs = None  # segments are given back before the host may want them again
                self.in_user_code = False
                if self.unsettled:
                    self._interruption.settle(self)
                enter()
            except BaseException as error:
                self._reply(*self._raised(self._come_back(error)))
            else:
                if self.is_fork:
                    self._end_fork(None)
                try:
                    payload = encoder.encode(result)
                    reply(result_kind, pickle, payload, encoder.take_buffers() if encoder.has_buffers else ())
                except ConnectionClosed:
                    return
                except BaseException as error:
                    self._reply(*self._unencodable(error, result))
            # Nothing of a call stays alive while waiting for the next one.
            payload, buffers = b"", ()
            name = args = kwargs = result = function = None  # type: ignore[assignment]
            if self.pending:
                self.do_pending()

    def do_pending(self) -> None:
        """What was left to be done between calls."""
        while self.pending:
            self.pending.popleft()()

    def _run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function of the user's, from a place where this thread has the turn."""
        serving = get_ident() == self.thread
        call_id = self.connection.conversation.call_id
        try:
            self._turn.release()
            self.in_user_code = serving
            result = function(*args, **kwargs)
            if serving:
                self.in_user_code = False
                if self.unsettled:
                    self._interruption.settle(self)
            self._turn.acquire()
        except BaseException as error:
            raise self._come_back(error) from None
        finally:
            self._wait_for_deeper(call_id)
        return result

    def _wait_for_deeper(self, call_id: int) -> None:
        """Let calls that another thread is in the middle of come to their end before the call of this id is answered:
        an answer is always to the innermost one. To be called, and returns, with the turn held once."""
        conversation = self.connection.conversation
        while conversation.call_id > call_id and conversation.depth and not self._is_broken:
            deeper = allocate_lock()
            deeper.acquire()
            self._waiting.append(deeper)
            self._turn.release()
            deeper.acquire()
            self._turn.acquire()

    def _come_back(self, error: BaseException) -> BaseException:
        """Back from user code, which raised; returns what it raised. An interruption may still strike at any line."""
        while True:
            try:
                if get_ident() == self.thread:
                    self.in_user_code = False
                    self._interruption.settle(self)
                while not self._turn._is_owned():  # type: ignore[attr-defined]
                    self._turn.acquire()
                return error
            except Cancelled as late:
                error = late

    def _answer(self, payload: Bytes, buffers: Sequence[Bytes]) -> Answer:
        """The answer to a call that came while this side waits for one of its own."""
        try:
            name, args, kwargs = self._decoder.decode(payload, buffers, _CALL_LABELS)
            function = self.functions[name]
        except BaseException as error:
            return self._not_reached(error)
        try:
            result = self._run(function, args, kwargs)
        except BaseException as error:
            return self._raised(error)
        finally:
            # The next one of the same depth has the same id.
            call_id = self.connection.conversation.call_id
            if self.interrupted_call == call_id:
                self.interrupted_call = 0
        if self.cancelled_call == call_id:
            self.cancelled_call = 0
        self._end_fork(None)
        encoder = self._encoder
        try:
            payload = encoder.encode(result)
        except BaseException as error:
            return self._unencodable(error, result)
        return wire.RESULT, wire.PICKLE, payload, encoder.take_buffers()

    def _not_reached(self, error: BaseException) -> Answer:
        """No function was called: the host raises its own error of this name."""
        if isinstance(error, KeyError):
            return self._described({"atoll": "FunctionNotFound", "message": str(error.args[0])})
        return self._described({"atoll": "DecodeError", "message": str(error)})

    def _raised(self, error: BaseException) -> Answer:
        """The function raised."""
        self._end_fork(error)
        cancelled = self.cancelled_call
        if self.concerns(cancelled):
            if cancelled > _CALL_NUMBER and cancelled == self.connection.conversation.call_id:
                self.cancelled_call = 0  # the next one of the same depth has the same id
            if _is_cancellation(error):
                return self._described({"atoll": "Cancelled", "message": ""})
        return self._described(describe_raised(error))

    def _unencodable(self, error: BaseException, result: object) -> Answer:
        """The result cannot be encoded; looking for the reason runs code of its class, which may do anything."""
        self._encoder.take_back()  # should it only have been too large for a frame
        try:
            from .values import explain_unencodable

            message = str(explain_unencodable(error, (("result", result),)))
        except BaseException as strange:
            message = f"result cannot be passed, nor can it be said why: {type(strange).__name__}"
        kind = "SegmentsExhausted" if isinstance(error, SegmentsExhausted) else "EncodeError"
        return self._described({"atoll": kind, "message": message})

    def _described(self, described: Dict[str, Any]) -> Answer:
        self._end_fork(None)
        encoder = self._encoder
        try:
            payload = encoder.encode(described)
        except BaseException as strange:  # a part that could be encoded when it was tried
            message = f"the worker's error cannot be passed: {type(strange).__name__}"
            payload = encoder.encode({"atoll": "EncodeError", "message": message})
        return wire.ERROR, wire.PICKLE, payload, encoder.take_buffers()

    def _answer_json(self, request: Bytes) -> Answer:
        """The answer to a call in JSON, as docs/wire.md has it."""
        codec = self._json or self.prepare_json()
        self.is_json = True
        try:
            try:
                function, args, kwargs = self._request_of(codec, request)
            except BaseException as error:
                return self._json_error(error, "FunctionNotFound" if isinstance(error, KeyError) else "DecodeError")
            try:
                result = self._run(function, args, kwargs)
                self._end_fork(None)
            except BaseException as error:
                self._end_fork(error)
                was_cancelled = self.concerns(self.cancelled_call) and _is_cancellation(error)
                return self._json_error(error, "Cancelled" if was_cancelled else None)
            try:
                return wire.RESULT, wire.JSON, codec.encode(result), ()
            except BaseException as error:
                self._end_fork(error)
                return self._json_error(error, "EncodeError")
        finally:
            self.is_json = False
            self.deadline = 0.0

    def prepare_json(self) -> Codec:
        """What reads and writes calls in JSON; finding it may import a library of the user's, which takes a while."""
        if self._json is None:
            from .json_codec import Codec

            self._json = Codec()
        return self._json

    def _request_of(self, codec: Codec, request: Bytes) -> Tuple[Callable[..., Any], Any, Any]:
        """What a request in JSON asks for: function, positional and named arguments.

        Raises:
            KeyError: there is no such function.
            DecodeError: it is no request.
        """
        try:
            call = codec.decode(request)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"not JSON: {error}") from None
        if type(call) is not dict or type(call.get("function")) is not str:
            raise DecodeError('a call is a JSON object whose "function" is the name of one')
        name, args, kwargs = call["function"], call.get("args", []), call.get("kwargs", {})
        if type(args) is not list or type(kwargs) is not dict:
            raise DecodeError(f'"args" of a call of {name!r} must be an array, and "kwargs" an object')
        timeout = call.get("timeout")
        if timeout is not None:
            if type(timeout) not in (int, float):
                raise DecodeError(f'"timeout" of a call of {name!r} must be a number of seconds, not {timeout!r}')
            self.deadline = monotonic() + timeout
        if name == NEXT:
            return self._next_of_stream, args, kwargs
        if name == CLOSE:
            return self._close_stream, args, kwargs
        function = self.functions[name]
        if call.get("stream"):
            return self._open_stream, [function, args, kwargs], {}
        return function, args, kwargs

    def _open_stream(self, function: Callable[..., Any], args: Any, kwargs: Any) -> int:
        """Call a function and keep what it returns; its items are asked for by number."""
        result = function(*args, **kwargs)
        if not is_iterator(type(result)):
            result = iter(result)
        self._last_stream += 1
        self._streams[self._last_stream] = Outlet(result)
        return self._last_stream

    def _next_of_stream(self, number: int, maximum: int = MAX_BATCH) -> Any:
        stream = self._streams.get(number)
        if stream is None:
            raise LookupError(f"there is no stream {number!r} on this connection, or it has ended")
        try:
            items, ended = stream.take(max(1, min(maximum, MAX_BATCH)))
        except BaseException:
            self._streams.pop(number, None)
            raise
        if ended:
            self._streams.pop(number, None)
        return items, ended

    def _close_stream(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.close()

    def _json_error(self, error: BaseException, own: Optional[str]) -> Answer:
        """Args:
        own: what atoll's own error is called that this is; None for one that the function raised.
        """
        skip = _own_frames(error)
        described = describe_exception(error, can_cross, skip)
        answer = {name: described[name] for name in ("type", "module", "message", "notes")}
        answer["traceback"] = format_exception(error, skip)
        if own is not None:
            answer["atoll"] = own
        return wire.ERROR, wire.JSON, self.prepare_json().encode(answer, "error"), ()

    def _reply(self, kind: int, codec: int, payload: Bytes, buffers: Sequence[Bytes]) -> None:
        try:
            self.connection.reply(kind, codec, payload, buffers)
        except ConnectionClosed:
            pass  # the next receive says so too
        except LocalProtocolError:
            if self.connection.conversation.state == wire.CALLING:
                raise
            # The host hung up in the middle of a call back, which was therefore never answered: as above.

    # -- calling back ----------------------------------------------------------------------------------------

    def ask(self, function: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Call a function of the host's, within the call in progress, and return its result.

        Raises:
            RemoteError: it raised.
            AtollError: no call is in progress.
            EncodeError: an argument cannot cross.
        """
        if self.is_json:
            raise AtollError("the caller of this call speaks JSON, and cannot be called back")
        serving = get_ident() == self.thread
        number = self.call_number
        if serving:
            self._leave_user_code()
            self._turn.acquire()
        else:
            while number and not self._turn.acquire(timeout=_LOOK_AGAIN):
                if self.call_number != number:
                    number = 0  # between calls the serving thread keeps the turn
        value: Any = None
        try:
            if not number or self.call_number != number:
                raise AtollError(NO_CALL)
            kind, payload, buffers = self._exchange(function, args, kwargs)
            if payload and payload[0] == wire.CARGO:
                # What was lent is taken up, and so given back, whether or not an interruption strikes from here on.
                value, payload = self._decoder.decode(payload, buffers), b""
        except ConnectionClosed:
            self._is_broken = True
            raise
        finally:
            while self._waiting:
                self._waiting.popleft().release()
            if number:
                self._turn.release()
            if serving:
                self.in_user_code = True
        if serving and self.concerns(self.interrupted_call):
            self.interrupted_call = 0
            raise Cancelled("the call was cancelled")
        if payload:
            value = self._decoder.decode(payload, buffers)
        if kind == wire.RESULT:
            return value
        self._raise(value, function)

    def _leave_user_code(self) -> None:
        """The serving thread calls back.

        Raises:
            AtollError: it is not in user code, but in the midst of moving a frame: a destructor runs there.
        """
        if not self.in_user_code:
            raise AtollError("the host cannot be called from what runs while a value is passed, such as a destructor")
        try:
            self.in_user_code = False
            if self.unsettled:
                self._interruption.settle(self)
        except BaseException:
            self.in_user_code = True
            raise

    def _exchange(self, function: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[int, Bytes, Any]:
        encoder = self._encoder
        exchange = self.connection.exchange
        encoder.for_arguments(True)
        try:
            payload: Bytes = encoder.encode((function, args, kwargs))
        except Exception as error:
            if function == INVOKE:  # what the user passed, not what carries it
                args, kwargs = args[2], args[3]
            from .values import explain_unencodable

            raise explain_unencodable(error, (("args", args), ("kwargs", kwargs))) from None
        finally:
            encoder.for_arguments(False)
        kind, _, payload, buffers = exchange(wire.PICKLE, payload, encoder.take_buffers(), kind=wire.CALL)
        while kind == wire.CALL:
            kind, codec, payload, buffers = self._answer(payload, buffers)
            kind, _, payload, buffers = exchange(codec, payload, buffers, kind=kind)
        return kind, payload, buffers

    def _raise(self, described: Dict[str, Any], function: str) -> NoReturn:
        own = described.get("atoll")
        if own == "EncodeError":
            raise EncodeError(described["message"])
        if own == "DecodeError":
            raise DecodeError(described["message"])
        if own is not None:
            raise AtollError(described["message"])
        from .rebuilding import rebuild

        raise rebuild(described, "the host", os.getppid(), f"<the host, pid {os.getppid()}>")

    # -- cancelling ------------------------------------------------------------------------------------------

    def cancel(self, call_id: int, cooperative: bool) -> None:
        """The host wants a call to end. On the control thread.

        Args:
            call_id: of the call; perhaps it is on its way yet.
            cooperative: only say so to code that asks.
        """
        conversation = self.connection.conversation
        if call_id & _CALL_NUMBER < conversation.call_id & _CALL_NUMBER or (
            call_id & _CALL_NUMBER == conversation.call_id & _CALL_NUMBER and not conversation.depth
        ):
            return  # it has ended
        self.cancelled_call = call_id
        if cooperative:
            return
        task = self.task
        if task is not None and self._cancelled_task != call_id and self.concerns(call_id):
            self._cancelled_task = call_id  # the next time, whatever runs is interrupted
            try:
                task.get_loop().call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass  # the loop is closed
            return
        self.interrupted_call = call_id
        self._interruption.interrupt(self)

    def withdraw_cancel(self, call_id: int) -> None:
        """A call that the host wanted to end has ended, perhaps before it was heard of; the next one of the same depth
        has the same id. On the control thread."""
        if self.cancelled_call == call_id:
            self.cancelled_call = 0
        if self.interrupted_call == call_id:
            self.interrupted_call = 0
        if self._cancelled_task == call_id:
            self._cancelled_task = 0

    def poke(self) -> None:
        """Let the serving thread do what is pending, if it is idle. From any thread."""
        self._interruption.interrupt(self)


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, Cancelled) or type(error).__name__ == "CancelledError"


def describe_raised(error: BaseException) -> Dict[str, Any]:
    """What a function raised, for the host to raise again."""
    skip = _own_frames(error)
    described = describe_exception(error, can_cross, skip)
    described["text"] = format_exception(error, skip)
    return described


_traceback_of = BaseException.__dict__["__traceback__"].__get__


def _own_frames(error: BaseException) -> int:
    """How many of the outermost frames of a traceback are atoll's own, which say nothing to the function's author."""
    count = 0
    traceback = _traceback_of(error)  # whatever a strange class makes of it
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_OWN_FOLDERS):
        count += 1
        traceback = traceback.tb_next
    return count


def can_cross(value: object) -> bool:
    """Whether a part of an error can be encoded, and is small enough to be passed along."""
    from .values import Encoder

    try:
        encoder = Encoder()
        size = len(encoder.encode(value)) + sum(view.nbytes for view in encoder.take_buffers())
    except Exception:
        return False
    return size <= MAX_PART
