# SPDX-License-Identifier: Apache-2.0
"""``ServiceBase``: a service of one function, ``process``, that is also a program of its own.

As a program (``run``) it reads one JSON object from standard input, to its end, and writes one line of JSON, the last
of standard output. As a service of atoll its ``process`` stands in the function table like any other function.

What always holds here: once ``run`` has begun, nothing but the answer reaches standard output, whoever prints, in
whatever language, and whenever: its descriptor is moved out of reach, and in its place stands that of standard error.
"""

from __future__ import annotations

import os
import sys
from time import perf_counter

from ..completion import complete, is_coroutine
from ..json_codec import write_json
from ..service import (
    Service,
    is_async_generator_function,
    is_coroutine_function,
    is_generator_function,
    is_idempotent,
    mark_idempotent,
)
from . import answers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

_FUNCTION = "process"

# Set to 1: each item of a generator is a line of its own, as soon as it is there.
STREAM_VARIABLE = "ATOLL_STDIO_STREAM"

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Logger:
    """``ServiceBase.logger``: made when it is first asked for, so that a subclass may forget ``super().__init__()``.

    Not a property: a subclass may set a logger of its own.
    """

    def __get__(self, service: Any, owner: Any = None) -> Any:
        if service is None:
            return self
        logger = service.__dict__["logger"] = _make_logger(service)
        return logger


class ServiceBase(Service):
    """Base of a service that turns one JSON object into another.

    Subclasses have ``process``, a function, a coroutine function or a generator (of either kind), whose items are a
    stream; and, if there is something to check, ``validate_input`` and ``validate_output``. ``setup`` and ``teardown``
    are those of ``Service``.

    Args:
        log_level: from which level on ``self.logger`` lets records through: a number or a name of ``logging``'s.
        log_file: a file that gets them too; None for none.
    """

    log_level: Union[int, str] = 20  # logging.INFO, which takes milliseconds to import
    log_file: Optional[str] = None

    if TYPE_CHECKING:
        logger: Logger
        process: Any
    else:
        logger = _Logger()

    def __init__(self, log_level: Union[int, str] = 20, log_file: Optional[str] = None) -> None:
        self.log_level = log_level
        self.log_file = log_file

    def validate_input(self, params: Dict[str, Any]) -> None:
        """Raise, preferably ``ValueError``, if ``params`` are not what ``process`` needs."""

    def validate_output(self, result: Any) -> None:
        """Raise if ``result`` is not what callers are promised. A generator's items are checked one by one."""

    def __atoll_functions__(self) -> Iterator[Tuple[str, Callable[..., Any]]]:
        # Its author may have marked `process` too.
        yield from (pair for pair in super().__atoll_functions__() if pair[0] != _FUNCTION)
        yield _FUNCTION, _checked(self)

    def run(self) -> None:
        """Be a program: read one JSON object from standard input, to its end, and write the answer as the last line of
        standard output.

        The answer is the result, with ``success: true`` and ``_meta`` (``duration_seconds``, ``timestamp``). A result
        that is no object stands under ``result``. What is printed goes to standard error.

        Raises:
            SystemExit: of status 1: the call came to nothing. The answer then is ``success: false`` with ``error``,
                ``error_type``, ``context`` (``"Invalid JSON input"``, ``"Validation error"``, which is any ValueError
                and what a validator raised, or ``"Unexpected error"``), ``traceback`` and ``_meta``.
        """
        pid = os.getpid()
        out = _take_stdout()
        answer = self._answer(out)
        if os.getpid() != pid:
            os._exit(0)  # a child that user code forked and let fall through to here: the answer is its parent's
        _write_last(out, write_json(answer, "the answer"))
        try:
            self.teardown()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        if not answers.is_success(answer):
            raise SystemExit(1)

    def _answer(self, out: int) -> Dict[str, Any]:
        """Make the call that standard input holds."""
        began = perf_counter()
        context: Optional[str] = answers.INVALID_JSON
        try:
            params = answers.read_params(_read_stdin())
            context = None
            self.setup()
            began = perf_counter()
            answer = answers.succeeded(self._process_all(params, out), perf_counter() - began)
            write_json(answer, "the result")
            return answer
        except BaseException as error:  # also SystemExit: whoever waits wants to know
            from ..channel import describe_raised

            described = describe_raised(error)
            if context is None or not isinstance(error, ValueError):  # an interruption while it was being read
                context = answers.context_of(error)
            seconds = perf_counter() - began
            return answers.failed(described["message"], described["type"], context, described["text"], seconds)

    def _process_all(self, params: Dict[str, Any], out: int) -> Any:
        function = _checked(self)
        if not is_generator_function(function):
            return complete(function(params)) if is_coroutine_function(function) else function(params)
        items: List[Any] = []
        take = items.append
        if os.environ.get(STREAM_VARIABLE) == "1":
            count = 0

            def take(item: Any) -> None:
                nonlocal count
                _write(out, write_json({"chunk": item}, "a chunk"))
                count += 1

        if is_async_generator_function(function):

            async def take_all() -> None:
                async for item in function(params):
                    take(item)

            complete(take_all())
        else:
            for item in function(params):
                take(item)
        return {"chunks": count} if os.environ.get(STREAM_VARIABLE) == "1" else items


# -- the function --------------------------------------------------------------------------------------------------


def _checked(service: ServiceBase) -> Callable[..., Any]:
    """``process`` with its checks, as a function of the same kind.

    It takes the parameters as one object, or each by its name. With ``_answer="answer"`` it gives what ``run`` writes;
    with that or ``"parts"``, numbers that JSON has not are errors as they are there.

    Raises:
        TypeError: there is no ``process``.
    """
    process = getattr(service, _FUNCTION, None)
    if process is None:
        raise TypeError(
            f"class {type(service).__qualname__} has no process(self, params): that is what a ServiceBase does"
        )

    def enter(args: Tuple[Any, ...], named: Dict[str, Any], wanted: str) -> Dict[str, Any]:
        params = _params(args, named)
        if wanted:
            answers.check_params(params)
        _validate(service.validate_input, params)
        return params

    def leave(result: Any, wanted: str) -> Any:
        _validate(service.validate_output, result)
        if wanted:
            answers.check_result(result, "the result")
        return result

    function: Callable[..., Any]
    if is_async_generator_function(process):

        async def function(*args: Any, _answer: str = "", **named: Any) -> Any:
            async for item in process(enter(args, named, _answer)):
                yield leave(item, _answer)

    elif is_generator_function(process):

        def function(*args: Any, _answer: str = "", **named: Any) -> Any:
            for item in process(enter(args, named, _answer)):
                yield leave(item, _answer)

    elif is_coroutine_function(process):

        async def function(*args: Any, _answer: str = "", **named: Any) -> Any:
            params = enter(args, named, _answer)
            began = perf_counter()
            result = leave(await process(params), _answer)
            return answers.succeeded(result, perf_counter() - began) if _answer == answers.ANSWER else result

    else:

        def function(*args: Any, _answer: str = "", **named: Any) -> Any:
            params = enter(args, named, _answer)
            began = perf_counter()
            result = leave(process(params), _answer)
            return answers.succeeded(result, perf_counter() - began) if _answer == answers.ANSWER else result

    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"):
        if hasattr(process, name):
            setattr(function, name, getattr(process, name))
    vars(function)["__wrapped__"] = process  # for whoever asks for the signature
    if is_idempotent(process):
        mark_idempotent(function)
    return function


def _params(args: Tuple[Any, ...], named: Dict[str, Any]) -> Dict[str, Any]:
    """``process(params)``, ``process(params=params)`` and ``process(name=value, ...)``."""
    if len(args) > 1 or (args and named):
        raise TypeError("process takes one object of parameters, or each parameter by its name")
    if args:
        params = args[0]
    else:
        params = named["params"] if len(named) == 1 and isinstance(named.get("params"), dict) else named
    if not isinstance(params, dict):
        raise TypeError(f"process takes one object of parameters, not {params!r:.100}")
    return params


def _validate(validator: Callable[[Any], Any], value: Any) -> None:
    try:
        outcome = validator(value)
        if is_coroutine(outcome):
            outcome = complete(outcome)
        if outcome is False:
            raise ValueError(f"{validator.__name__} returned False")
    except Exception as error:
        answers.mark(error, answers.VALIDATION)
        raise


# -- the program ---------------------------------------------------------------------------------------------------


def _take_stdout() -> int:
    """Move standard output out of everybody's reach; returns its descriptor, -1 if it is closed. What was printed
    before and has not left this process yet goes to standard error, as all that is printed from now on."""
    import fcntl

    try:
        out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        return -1
    try:
        os.dup2(2, 1)
    except OSError:  # closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        if nowhere != 1:
            os.close(nowhere)
    try:
        if _has_written():
            os.write(out, b"\n")  # what was printed may have been half a line
        sys.stdout.flush()
    except Exception:
        pass  # closed, or put there by user code
    return out


def _has_written() -> bool:
    """Whether this process has written anything anywhere, or that cannot be known."""
    try:
        with open("/proc/self/io", "rb") as file:
            return b"wchar: 0\n" not in file.read()
    except OSError:
        return True


def _read_stdin() -> bytes:
    chunks = []
    try:
        while True:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
    except OSError:
        pass  # closed: nothing was sent
    return b"".join(chunks)


def _write(out: int, line: str) -> None:
    data = memoryview(line.encode("ascii") + b"\n")
    while data:
        data = data[os.write(out, data) :]


def _write_last(out: int, line: str) -> None:
    """Write the answer, and let whoever reads see the end of it, however long this process goes on."""
    try:
        if out < 0:
            raise OSError("standard output is closed")
        _write(out, line)
        os.close(out)
    except OSError as error:
        print(f"the answer could not be written: {error}", file=sys.stderr)
        raise SystemExit(1) from None


# -- logging -------------------------------------------------------------------------------------------------------


def _make_logger(service: ServiceBase) -> Logger:
    import logging

    from ..context import is_worker

    logger = logging.getLogger(type(service).__name__)
    logger.setLevel(service.log_level)
    file = service.log_file
    if file is not None:
        path = os.path.abspath(os.path.expanduser(file))
        if not any(getattr(handler, "baseFilename", None) == path for handler in logger.handlers):
            to_file = logging.FileHandler(path, encoding="utf-8")
            to_file.setFormatter(logging.Formatter(_FORMAT))
            logger.addHandler(to_file)
    # A worker's records go to its host. And who has set logging up has said where they are to go.
    if not is_worker() and not logging.getLogger().handlers and not getattr(logger, "atoll_prints", False):
        to_stderr = logging.StreamHandler()
        to_stderr.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(to_stderr)
        logger.atoll_prints = True  # type: ignore[attr-defined]
    return logger
