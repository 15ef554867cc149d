# SPDX-License-Identifier: Apache-2.0
"""Traces cross: what one side sends the other makes its parent, with OpenTelemetry's own SDK and without it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from atoll.pool import tracing
from atoll_worker import tracing as worker_tracing

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    """Spans that have ended, and a tracer of the user's."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def ended(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    made = Spans()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made.provider)
    yield made
    made.provider.shutdown()


@pytest.fixture
def without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_modules", {})
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def test_spans_of_the_worker_are_children_of_the_call_which_is_a_child_of_the_callers(spans: Spans) -> None:
    with spans.tracer.start_as_current_span("of the caller") as of_caller:
        call = tracing.begin("vision", "detect")
        assert trace.get_current_span() is of_caller
    assert call is not None
    worker = threading.Thread(target=in_worker, args=(spans, call.headers))
    worker.start()
    worker.join()
    call.end("ok")
    caller, called, child = (spans.ended[name] for name in ("of the caller", "atoll.call vision.detect", "in worker"))
    assert called.kind is SpanKind.CLIENT
    assert called.parent is not None
    assert called.parent.span_id == context_of(caller).span_id
    assert child.parent is not None
    assert child.parent.is_remote
    assert child.parent.span_id == context_of(called).span_id
    assert len({context_of(span).trace_id for span in (caller, called, child)}) == 1
    assert called.attributes == {
        "rpc.system": "atoll",
        "rpc.service": "vision",
        "rpc.method": "detect",
        "atoll.outcome": "ok",
    }
    assert called.status.status_code is StatusCode.UNSET


def in_worker(spans: Spans, headers: dict[str, str]) -> None:
    """What a worker does around a call."""
    with worker_tracing.use(headers["traceparent"], headers.get("tracestate")):
        assert worker_tracing.traceparent() == headers["traceparent"]
        with spans.tracer.start_as_current_span("in worker"):
            pass
    assert worker_tracing.traceparent() is None
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_call_without_a_current_span_begins_a_trace(spans: Spans) -> None:
    call = tracing.begin("s", "f")
    assert call is not None
    call.end("ok")
    (span,) = spans.ended.values()
    assert span.parent is None
    assert call.headers["traceparent"].split("-")[2] == f"{context_of(span).span_id:016x}"


def test_a_call_that_failed_says_how_in_its_span_and_ends_once(spans: Spans) -> None:
    call = tracing.begin("s", "f")
    assert call is not None
    call.end("timeout", TimeoutError("did not answer within 3 seconds"))
    call.end("ok")
    (span,) = spans.ended.values()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "did not answer within 3 seconds"
    assert span.attributes is not None
    assert (span.attributes["atoll.outcome"], span.attributes["error.type"]) == ("timeout", "TimeoutError")
    assert [event.name for event in span.events] == ["exception"]


def test_a_trace_given_by_hand_is_the_parent_where_no_span_is_current(spans: Spans) -> None:
    with tracing.traceparent(HEADER, "vendor=1"):
        call = tracing.begin("s", "f")
        assert call is not None
        assert call.headers["tracestate"] == "vendor=1"
        call.end("ok")
        with spans.tracer.start_as_current_span("current"):
            inner = tracing.begin("s", "g")
            assert inner is not None
            inner.end("ok")
    assert spans.ended["atoll.call s.f"].parent is not None
    assert f"{spans.ended['atoll.call s.f'].parent.span_id:016x}" == "b7ad6b7169203331"
    inner_parent = spans.ended["atoll.call s.g"].parent
    assert inner_parent is not None
    assert inner_parent.span_id == context_of(spans.ended["current"]).span_id


def test_opentelemetry_that_nobody_set_up_adds_nothing() -> None:
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert tracing.begin("s", "f") is None
    assert tracing.current_traceparent() is None
    with tracing.traceparent(HEADER):
        call = tracing.begin("s", "f")
        assert call is not None
        assert call.headers == {"traceparent": HEADER}
        call.end("error", ValueError())


def test_an_opentelemetry_that_fails_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(trace, "get_tracer_provider", fail)
    monkeypatch.setattr(trace, "get_current_span", fail)
    with tracing.traceparent(HEADER):
        call = tracing.begin("s", "f")
        assert call is not None
        call.end("ok")
    monkeypatch.setattr(trace, "NonRecordingSpan", fail)
    with worker_tracing.use(HEADER):
        assert worker_tracing.traceparent() == HEADER


@pytest.mark.usefixtures("without_opentelemetry")
def test_without_opentelemetry_a_trace_given_by_hand_crosses() -> None:
    assert tracing.begin("s", "f") is None
    assert tracing.current_traceparent() is None
    with tracing.traceparent(HEADER, "vendor=1"):
        assert tracing.may_trace()
        assert tracing.current_traceparent() == HEADER
        call = tracing.begin("s", "f")
        assert call is not None
        assert call.headers == {"traceparent": HEADER, "tracestate": "vendor=1"}
        call.end("ok")
        with tracing.traceparent(HEADER.replace("b7", "c8")):
            assert tracing.current_traceparent() != HEADER
        assert tracing.current_traceparent() == HEADER
    assert tracing.current_traceparent() is None


@pytest.mark.usefixtures("without_opentelemetry")
def test_a_call_made_in_the_middle_of_a_call_passes_its_trace_on() -> None:
    with worker_tracing.use(HEADER):
        assert tracing.may_trace()
        assert tracing.current_traceparent() == HEADER


def test_a_program_without_traces_is_told_so_at_once() -> None:
    code = "from atoll.pool import tracing; assert not tracing.may_trace(); import opentelemetry.trace\n"
    code += "assert tracing.may_trace()"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_each_task_has_the_trace_of_its_own_call() -> None:
    headers = [HEADER.replace("b7", one) for one in ("c1", "c2", "c3")]

    async def work(header: str, together: asyncio.Barrier) -> str | None:
        with worker_tracing.use(header):
            await together.wait()
            return worker_tracing.traceparent()

    async def main() -> list[str | None]:
        together = asyncio.Barrier(3)
        return await asyncio.gather(*(work(header, together) for header in headers))

    assert asyncio.run(main()) == headers


MALFORMED = [
    "",
    "00",
    HEADER[:-1],
    HEADER + "-00",
    HEADER.upper(),
    HEADER.replace("-", "_"),
    "ff" + HEADER[2:],
    "00-" + "0" * 32 + "-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
    "0g" + HEADER[2:],
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-+1",
    "01" + HEADER[2:] + "-" + "x" * 1000,
]


@pytest.mark.parametrize("header", MALFORMED)
def test_a_malformed_header_is_refused_here_and_passed_over_there(header: str) -> None:
    with pytest.raises(ValueError, match="not a traceparent header"), tracing.traceparent(header):
        pass
    with worker_tracing.use(header):
        assert worker_tracing.traceparent() is None


def test_a_later_version_may_say_more() -> None:
    assert worker_tracing.parse("01" + HEADER[2:] + "-more") == worker_tracing.parse(HEADER)


def test_a_tracestate_that_must_not_be_passed_on_is_left_out() -> None:
    for strange in ("a=1\r\nx: y", "a=" + "1" * 600, "ä=1", 7, None):
        assert worker_tracing.clean_tracestate(strange) == ""


def test_the_worker_side_imports_nothing_for_it() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import atoll_worker.tracing as tracing\n"
        f"with tracing.use({HEADER!r}): assert tracing.traceparent() == {HEADER!r}\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('atoll_worker')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {"opentelemetry", "opentelemetry.trace", "typing", "re", "contextlib"}.isdisjoint(done.stdout.split())
