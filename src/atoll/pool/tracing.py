# SPDX-License-Identifier: Apache-2.0
"""The trace that a call belongs to, on the side that calls.

A call carries the W3C headers ``traceparent`` and ``tracestate`` if there is a current trace: OpenTelemetry's, if the
program uses that, or one given with ``with atoll.traceparent(...)``. Where OpenTelemetry is in use, a call is also a
span of its own. What always holds: OpenTelemetry is never imported, only noticed, so that without it a call pays for
one look into a dict; and whatever goes wrong here never fails a call.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from atoll_worker.tracing import clean_tracestate, current_headers, in_use, parse

# What a program set itself. In a worker that is a host in turn, the headers of the call in progress come after it.
_set_headers: ContextVar[tuple[str, str] | None] = ContextVar("atoll_set_trace", default=None)
_modules = sys.modules
# The program's tracer provider, and our tracer of it: asking for one takes as long as a call.
_tracer: tuple[Any, Any] = (None, None)


@contextlib.contextmanager
def traceparent(header: str, tracestate: str = "") -> Iterator[None]:
    """Calls made inside belong to this trace: for programs that get a ``traceparent`` header and have no tracing
    library. With OpenTelemetry in use and a span current, that span goes before.

    Args:
        header: as the W3C recommendation "Trace Context" writes it,
            ``"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"``.
        tracestate: the header of that name, if there is one.

    Raises:
        ValueError: it is no such header.
    """
    if parse(header) is None:
        raise ValueError(
            f"not a traceparent header: {header!r:.300}; it is written 00-<32 hexadecimal digits>-<16>-<2>, in small "
            "letters, and neither number is zero"
        )
    in_use[:] = (True,)
    token = _set_headers.set((header, clean_tracestate(tracestate)))
    try:
        yield
    finally:
        _set_headers.reset(token)


def current_traceparent() -> str | None:
    """The ``traceparent`` header that a call made now would carry; None if there is no current trace."""
    headers = _current()
    return None if headers is None else headers[0]


def _current() -> tuple[str, str] | None:
    trace = _modules.get("opentelemetry.trace")
    if trace is not None:
        with contextlib.suppress(Exception):
            headers = _headers_of(trace.get_current_span())
            if headers is not None:
                return headers
    headers = _set_headers.get()
    return current_headers.get() if headers is None else headers


def _headers_of(span: Any) -> tuple[str, str] | None:
    context = span.get_span_context()
    if not context.is_valid:
        return None
    header = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 0xFF:02x}"
    return header, clean_tracestate(context.trace_state.to_header())


class CallTrace:
    """A call that belongs to a trace.

    Attributes:
        headers: what the call carries in its metadata: ``traceparent``, and ``tracestate`` if there is one.
    """

    __slots__ = ("_span", "headers")

    def __init__(self, headers: tuple[str, str], span: Any = None) -> None:
        self.headers = {"traceparent": headers[0]}
        if headers[1]:
            self.headers["tracestate"] = headers[1]
        self._span = span

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """The call ended; only the first time counts. From any thread.

        Args:
            outcome: one of ``metrics.OUTCOMES``.
            error: what the caller gets to see, if it is not a result.
        """
        span, self._span = self._span, None
        if span is None:
            return
        with contextlib.suppress(Exception):
            from opentelemetry.trace import Status, StatusCode

            span.set_attribute("atoll.outcome", outcome)
            if outcome != "ok":
                if error is not None:
                    span.set_attribute("error.type", type(error).__qualname__)
                    span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, outcome if error is None else str(error)[:1000]))
        with contextlib.suppress(Exception):
            span.end()


def may_trace() -> bool:
    """Whether ``begin`` is worth asking. The path of a call inlines this."""
    return bool(in_use) or "opentelemetry.trace" in _modules


def begin(service: str, function: str) -> CallTrace | None:
    """A call begins: None if it belongs to no trace. ``CallTrace.end`` must be called at its end.

    With OpenTelemetry in use, it is the span ``atoll.call SERVICE.FUNCTION`` of kind CLIENT, a child of the current
    one. It does not become current itself: the caller's code does not run inside of it.
    """
    trace = _modules.get("opentelemetry.trace")
    if trace is not None:
        with contextlib.suppress(Exception):
            return _begin_span(trace, service, function)
    headers = _current()
    return None if headers is None else CallTrace(headers)


def _begin_span(trace: Any, service: str, function: str) -> CallTrace | None:
    global _tracer
    provider, tracer = _tracer
    if provider is not trace.get_tracer_provider():
        provider = trace.get_tracer_provider()
        # What there is before a program sets one up, or if it never does: only the current trace is passed on.
        tracer = None if isinstance(provider, trace.ProxyTracerProvider) else provider.get_tracer("atoll")
        _tracer = provider, tracer
    if tracer is None:
        headers = _current()
        return None if headers is None else CallTrace(headers)
    parent = None  # the current one
    if not trace.get_current_span().get_span_context().is_valid:
        headers = _current()
        if headers is not None:
            parent = _remote_context(trace, headers)
    span = tracer.start_span(
        f"atoll.call {service}.{function}",
        parent,
        trace.SpanKind.CLIENT,
        {"rpc.system": "atoll", "rpc.service": service, "rpc.method": function},
    )
    headers = _headers_of(span)
    return None if headers is None else CallTrace(headers, span)


def _remote_context(trace: Any, headers: tuple[str, str]) -> Any:
    ids = parse(headers[0])
    assert ids is not None
    trace_id, span_id, flags = ids
    state = trace.TraceState.from_header([headers[1]] if headers[1] else [])
    of_caller = trace.SpanContext(trace_id, span_id, True, trace.TraceFlags(flags), state)
    return trace.set_span_in_context(trace.NonRecordingSpan(of_caller))
