# SPDX-License-Identifier: Apache-2.0
"""The trace that a call belongs to, as the W3C recommendation "Trace Context" writes it.

Code of a call asks ``traceparent()``, and passes it on to whatever it calls in turn. Where that code has imported
OpenTelemetry, the caller's span is OpenTelemetry's current one too, so that spans made here are its children. Nothing
here imports OpenTelemetry unasked, and a malformed header is as none: a trace never stands in the way of a call.
"""

from __future__ import annotations

import sys
from _contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, List, Optional, Tuple, Type

# Longer ones may be dropped, says the recommendation.
MAX_TRACESTATE = 512
_MAX_TRACEPARENT = 256
_HEXADECIMAL = frozenset("0123456789abcdef")

# The headers of the trace that the running code belongs to: traceparent, and tracestate, which may be empty.
# Not empty once some call belonged to a trace: who never traces pays for one look.
in_use: List[bool] = []

current_headers: ContextVar[Optional[Tuple[str, str]]] = ContextVar("atoll_trace", default=None)


def parse(traceparent: object) -> Optional[Tuple[int, int, int]]:
    """Trace id, span id and flags of a ``traceparent`` header; None if it is none."""
    if type(traceparent) is not str or not 55 <= len(traceparent) <= _MAX_TRACEPARENT:
        return None
    parts = traceparent.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    version, trace_id, span_id, flags = parts[:4]
    if not _HEXADECIMAL.issuperset(version + trace_id + span_id + flags):
        return None
    # Later versions may append parts, this one has none.
    if version == "ff" or (version == "00" and len(parts) > 4):
        return None
    numbers = int(trace_id, 16), int(span_id, 16), int(flags, 16)
    return numbers if numbers[0] and numbers[1] else None


def clean_tracestate(tracestate: object) -> str:
    """A ``tracestate`` header as it may be passed on; empty if it must not be."""
    if type(tracestate) is str and len(tracestate) <= MAX_TRACESTATE and tracestate.isascii():
        return tracestate if tracestate.isprintable() else ""
    return ""


def traceparent() -> Optional[str]:
    """The ``traceparent`` header of the trace that this call belongs to, to be passed on; None if it belongs to none.

    Where OpenTelemetry is in use here, its own propagators say more: they know the spans made since.
    """
    headers = current_headers.get()
    return None if headers is None else headers[0]


class use:
    """While a call runs: the headers that came with it. Malformed ones are none.

    Args:
        traceparent: as the caller sent it.
        tracestate: as the caller sent it.
    """

    __slots__ = ("_attached", "_before", "_headers", "_ids")

    def __init__(self, traceparent: Optional[str], tracestate: Optional[str] = None) -> None:
        self._ids = parse(traceparent)
        self._headers = None
        in_use[:] = (True,)
        if self._ids is not None:
            assert traceparent is not None
            self._headers = (traceparent, clean_tracestate(tracestate))
        self._attached: Optional[Any] = None

    def __enter__(self) -> None:
        # Set and set back, rather than reset by token: a generator's code may be left in another context.
        self._before = current_headers.get()
        current_headers.set(self._headers)
        if self._ids is not None and "opentelemetry.trace" in sys.modules:
            try:
                self._attached = self._attach(*self._ids)
            except Exception:
                pass  # another OpenTelemetry than the one known here, or one half imported: the call goes on

    def _attach(self, trace_id: int, span_id: int, flags: int) -> Any:
        from opentelemetry import context, trace

        assert self._headers is not None
        state = trace.TraceState.from_header([self._headers[1]] if self._headers[1] else [])
        of_caller = trace.SpanContext(trace_id, span_id, True, trace.TraceFlags(flags), state)
        return context.attach(trace.set_span_in_context(trace.NonRecordingSpan(of_caller)))

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        current_headers.set(self._before)
        if self._attached is not None:
            try:
                from opentelemetry import context

                context.detach(self._attached)
            except Exception:
                pass  # as above
