# SPDX-License-Identifier: Apache-2.0
"""What a pool counts of real calls, and the traces that they belong to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

import atoll
import atoll.prometheus
from atoll.pool.metrics import Distribution
from client.gates import Callers, Gates
from conditions import until

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

Write = Callable[[str, str], Path]


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path / "gates")


def counted(service: atoll.Service) -> dict[tuple[str, str], int]:
    """How many calls of each function had each outcome."""
    found = {}
    for metric in service.metrics():
        if metric.name == "atoll_call_duration_seconds":
            for sample in metric.samples:
                assert isinstance(sample.value, Distribution)
                assert sample.labels["service"] == "gated"
                found[sample.labels["function"], sample.labels["outcome"]] = sample.value.total
    return {key: number for key, number in found.items() if number}


def gauges(service: atoll.Service) -> dict[str, Any]:
    """Every metric but the durations; those with one label beside the service, by that label's value."""
    found: dict[str, Any] = {}
    for metric in service.metrics():
        if metric.kind == "histogram":
            continue
        for sample in metric.samples:
            own = [value for label, value in sample.labels.items() if label != "service"]
            if own:
                found.setdefault(metric.name, {})[own[0]] = sample.value
            else:
                found[metric.name] = sample.value
    return found


# -- counting ------------------------------------------------------------------------------------------------------


def call_directly(function: Any, *args: Any) -> Any:
    return function(*args)


def call_awaited(function: Any, *args: Any) -> Any:
    async def main() -> Any:
        return await function.aio(*args)

    return asyncio.run(main())


def call_submitted(function: Any, *args: Any) -> Any:
    return function.submit(*args).result(30)


@pytest.mark.parametrize("call", [call_directly, call_awaited, call_submitted])
def test_every_outcome_is_counted_however_one_calls(gates: Gates, call: Callable[..., Any]) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        for _ in range(3):
            call(service.echo, 1)
        with pytest.raises(ValueError, match="no"):
            call(service.fail)
        with pytest.raises(atoll.CallTimeout):
            call(service.sleep.options(timeout=0.1), 30)
        with pytest.raises(atoll.WorkerDied):
            call(service.exit, 1)
        with pytest.raises(atoll.EncodeError):
            call(service.echo, object())
        assert counted(service) == {
            ("echo", "ok"): 3,
            ("fail", "error"): 1,
            ("sleep", "timeout"): 1,
            ("exit", "died"): 1,
            ("echo", "refused"): 1,
        }


def test_calls_given_up_are_counted_as_cancelled(gates: Gates) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        call = service.hold.submit()
        until(lambda: gates.held == 1)
        call.cancel()
        with pytest.raises(atoll.CallCancelled):
            call.result(30)

        async def main() -> None:
            task = asyncio.ensure_future(service.hold.aio())
            while gates.held < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        asyncio.run(main())
        until(lambda: counted(service) == {("hold", "cancelled"): 2})


def test_refusals_are_counted(gates: Gates) -> None:
    with atoll.Service(gates.file, max_queue=1, **gates.options) as service:
        with Callers(2, service.hold):
            until(lambda: gates.held == 1 and service.status().queue == 1)
            for _ in range(3):
                with pytest.raises(atoll.QueueFull):
                    service.whoami()
            gates.open()
        assert counted(service)["whoami", "refused"] == 3


def test_a_batch_of_map_is_a_call_of_its_function(gates: Gates) -> None:
    with atoll.Service(gates.file, **gates.options) as service:
        assert list(service.echo.map(range(100))) == list(range(100))
        numbers = counted(service)
        assert set(numbers) == {("echo", "ok")}
        assert numbers["echo", "ok"] <= 100
        with pytest.raises(TypeError):
            list(service.fail.map([1]))
        assert counted(service)["fail", "error"] == 1


def test_the_gauges(gates: Gates) -> None:
    with atoll.Service(gates.file, workers=2, **gates.options) as service:
        held = [service.hold.submit() for _ in range(2)]
        until(lambda: gates.held == 2)
        with Callers(1, service.whoami):
            until(lambda: gauges(service)["atoll_queue_depth"] == 1)
            found = gauges(service)
            gates.open()
        assert found["atoll_calls_in_flight"] == 2
        assert found["atoll_workers"] == {"starting": 0, "ready": 2, "retiring": 0, "ending": 0}
        assert found["atoll_breaker_open"] == 0
        assert set(found["atoll_worker_resident_bytes"]) == {"0", "1"}
        assert all(value > 1e6 for value in found["atoll_worker_resident_bytes"].values())
        assert "atoll_worker_restarts_total" not in found
        pids = [call.result(30) for call in held]
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: gauges(service).get("atoll_worker_restarts_total") == {"crashed": 1})


def test_prometheus_scrapes_a_real_pool(gates: Gates) -> None:
    server, thread = atoll.prometheus.start_server(0)
    try:
        with atoll.Service(gates.file, workers=2, **gates.options) as service:
            for _ in range(5):
                service.echo(1)
            with contextlib.suppress(ValueError):
                service.fail()
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=20) as answer:
                text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    samples = {
        (sample.name, *(value for label, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["atoll_call_duration_seconds_count", "echo", "ok", "gated"] == 5
    assert samples["atoll_call_duration_seconds_count", "fail", "error", "gated"] == 1
    assert samples["atoll_workers", "gated", "ready"] == 2
    assert samples["atoll_queue_depth", "gated"] == 0
    assert "__" not in text


# -- traces --------------------------------------------------------------------------------------------------------

TRACED = """\
from atoll_worker import expose, traceparent

@expose
def header(*ignored):
    return traceparent()

@expose
def headers(number):
    for _ in range(number):
        yield traceparent()

@expose
async def awaited():
    return traceparent()
"""


@pytest.fixture
def traced(write: Write) -> Iterator[Any]:
    with atoll.Service(write("traced.py", TRACED)) as service:
        yield service


def test_a_header_reaches_the_worker_however_one_calls(traced: Any) -> None:
    assert traced.header() is None
    with atoll.traceparent(HEADER):
        assert traced.header() == HEADER
        assert traced.header.options(timeout=20)() == HEADER
        assert call_awaited(traced.header) == HEADER
        assert call_submitted(traced.header) == HEADER
        assert set(traced.header.map(range(100))) == {HEADER}
        assert traced.awaited() == HEADER
        assert set(traced.headers(50)) == {HEADER}
    assert traced.header() is None
    assert set(traced.header.map(range(10))) == {None}


class Spans:
    """Spans that have ended, and a tracer of the user's."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def ended(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.ended if span.name == name]
        return found


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    made = Spans()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made.provider)
    yield made
    made.provider.shutdown()


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


SPANNING = """\
from atoll_worker import expose
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("worker")

@expose
def work(depth):
    with tracer.start_as_current_span("in the worker") as span:
        context = span.get_span_context()
        return context.trace_id, context.span_id, span.parent.span_id

@expose
def fail():
    raise ValueError("no")
"""


def test_a_span_of_the_worker_is_a_child_of_the_call_which_is_a_child_of_the_callers(
    write: Write, spans: Spans
) -> None:
    with atoll.Service(write("spanning.py", SPANNING)) as service:
        with spans.tracer.start_as_current_span("caller"):
            trace_id, _, parent = service.work(1)
        call = spans.named("atoll.call spanning.work")
        assert (trace_id, parent) == ids(call)
        assert call.parent is not None
        assert (call.parent.trace_id, call.parent.span_id) == ids(spans.named("caller"))
        assert call.attributes is not None
        assert call.attributes["atoll.outcome"] == "ok"
        with spans.tracer.start_as_current_span("submitting"):
            trace_id, _, _ = call_submitted(service.work, 1)
        assert trace_id == ids(spans.named("submitting"))[0]
        with pytest.raises(ValueError, match="no"):
            service.fail()
        failed = spans.named("atoll.call spanning.fail")
        assert failed.attributes is not None
        assert failed.attributes["atoll.outcome"] == "error"


def test_the_spans_of_a_stream_have_the_names_of_what_is_called(traced: Any, spans: Spans) -> None:
    with spans.tracer.start_as_current_span("caller"):
        assert len(set(traced.headers(3))) >= 1
    names = {span.name for span in spans.ended}
    assert "atoll.call traced.headers" in names
    assert not any("__" in name for name in names)


def test_each_attempt_of_a_retried_call_is_a_span(write: Write, spans: Spans, tmp_path: Path) -> None:
    file = write(
        "dying.py",
        f"""\
        import os
        from pathlib import Path
        from atoll_worker import expose

        @expose(idempotent=True)
        def once():
            mark = Path({str(tmp_path)!r}) / "mark"
            if not mark.exists():
                mark.touch()
                os._exit(1)
            return 1
        """,
    )
    with atoll.Service(file) as service:
        assert service.once.options(retries=1)() == 1
    outcomes = [(span.attributes or {})["atoll.outcome"] for span in spans.ended]
    assert outcomes == ["died", "ok"]
