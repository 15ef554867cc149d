# SPDX-License-Identifier: Apache-2.0
"""``atoll serve``: a service for programs in any language, over standard input and output, or at a socket."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer

from ..errors import ManifestError
from ..manifest.sizes import parse_size


def serve(
    source: Annotated[str, typer.Argument(help="A .py file, a folder with a service.yaml, or package.module[:Class].")],
    stdio: Annotated[bool, typer.Option("--stdio", help="Speak JSON-RPC 2.0 over standard input and output.")] = False,
    socket: Annotated[
        str | None, typer.Option("--socket", help="Speak atoll's own wire at a Unix socket that stands here.")
    ] = None,
    newline: Annotated[
        bool, typer.Option("--newline", help="Each message is a line; without it, it has a Content-Length header.")
    ] = False,
    max_size: Annotated[str, typer.Option(help='The largest message that is read, such as "64MB".')] = "64MiB",
    timeout: Annotated[float | None, typer.Option(help="Seconds a call may take.", min=0.001)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that run the service.", min=1, max=1000)] = None,
    max_connections: Annotated[int, typer.Option(help="Clients of the socket at a time.", min=1, max=100_000)] = 500,
    grace: Annotated[
        float, typer.Option(help="Seconds that calls get to end when the socket's service is told to.", min=0.0)
    ] = 10.0,
    log_level: Annotated[str, typer.Option(help="What is logged, on standard error.")] = "INFO",
) -> None:
    """Serve a service's functions: to the program that started this one, until standard input ends; or to whoever
    connects to a socket, until SIGINT or SIGTERM."""
    if stdio == (socket is not None):
        raise typer.BadParameter("say over what, and one of them: --stdio, or --socket PATH")
    if newline and not stdio:
        raise typer.BadParameter("--newline is for --stdio")
    try:
        size = parse_size(max_size)
    except ValueError:
        size = 0
    if size < 1:
        raise typer.BadParameter(f'--max-size: found {max_size!r}, expected bytes, or text such as "64MB"')
    level = logging.getLevelName(log_level.upper())
    if not isinstance(level, int):
        raise typer.BadParameter(f"--log-level: found {log_level!r}, expected DEBUG, INFO, WARNING or ERROR")
    streams = _take_streams() if stdio else None
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options: dict[str, Any] = {} if workers is None else {"workers": workers}
    from ..client import Service

    with Service(source, **options) as service:
        if streams is not None:
            from ..jsonrpc import ContentLengthFraming, LineFraming
            from ..jsonrpc import serve as converse

            status = converse(service, (LineFraming if newline else ContentLengthFraming)(size), *streams, timeout)
        else:
            from ..wire_server import serve as listen

            assert socket is not None
            status = listen(
                service, socket, timeout=timeout, max_size=size, max_connections=max_connections, grace=grace
            )
    if status:
        raise typer.Exit(status)


def _take_streams() -> tuple[int, int]:
    """Descriptors of standard input and output, in whose places /dev/null and standard error stand from now on: what
    anybody prints does not get among the messages."""
    try:
        requests, answers = os.dup(0), os.dup(1)
    except OSError as error:
        raise ManifestError(f"standard input and output are needed, and one is closed: {error.strerror}") from None
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(nowhere, 1)
    if nowhere > 2:
        os.close(nowhere)
    return requests, answers
