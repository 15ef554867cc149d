# SPDX-License-Identifier: Apache-2.0
"""``atoll.prometheus``: Prometheus's own parser reads what was counted, and without it all else works."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

import atoll.prometheus
from atoll.pool.metrics import BOUNDS, Metric, PoolMetrics, Snapshot

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

ODD = 'a "quoted"\\ name\nof two lines'


class Pool:
    """As much of a pool as is scraped."""

    def __init__(self, service: str) -> None:
        self.counted = PoolMetrics(service)

    def metrics(self) -> Iterator[Metric]:
        snapshot = Snapshot(1, 2, {"ready": 3, "starting": 0}, {0: 1000, 1: 2000}, False)
        return self.counted.metrics(snapshot)


@pytest.fixture
def pools() -> list[Pool]:
    made = [Pool("vision"), Pool("vision"), Pool(ODD)]
    for pool in made:
        pool.counted.calls["detect", "ok"].observe(0.02, 5.0)
        pool.counted.calls["detect", "error"].observe(1000.0, 5.0)
        pool.counted.restarted("died")
    return made


def parsed(text: str) -> tuple[dict[str, str], Samples]:
    """Types and samples of an exposition, by Prometheus's own parser."""
    types: dict[str, str] = {}
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        types[family.name] = family.type
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"twice: {key}"
            samples[key] = sample.value
    return types, samples


def exposed(pools: list[Pool]) -> str:
    registry = prometheus_client.CollectorRegistry()
    registry.register(atoll.prometheus.collector(lambda: pools))
    return prometheus_client.generate_latest(registry).decode()


def test_the_exposition_says_what_was_counted(pools: list[Pool]) -> None:
    types, samples = parsed(exposed(pools))
    assert types == {
        "atoll_call_duration_seconds": "histogram",
        "atoll_calls_in_flight": "gauge",
        "atoll_queue_depth": "gauge",
        "atoll_workers": "gauge",
        "atoll_worker_restarts": "counter",
        "atoll_worker_resident_bytes": "gauge",
        "atoll_breaker_open": "gauge",
    }

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    call = {"service": "vision", "function": "detect", "outcome": "ok"}
    name = "atoll_call_duration_seconds"
    assert value(f"{name}_count", **call) == 2
    assert value(f"{name}_sum", **call) == pytest.approx(0.04)
    assert [value(f"{name}_bucket", le=repr(bound), **call) for bound in BOUNDS] == [
        2 * (bound >= 0.02) for bound in BOUNDS
    ]
    assert value(f"{name}_bucket", le="+Inf", **call) == 2
    call["outcome"] = "error"
    assert value(f"{name}_bucket", le="300.0", **call) == 0
    assert value(f"{name}_bucket", le="+Inf", **call) == 2
    assert value("atoll_workers", service="vision", state="ready") == 6
    assert value("atoll_workers", service=ODD, state="starting") == 0
    assert value("atoll_worker_restarts_total", service=ODD, reason="died") == 1
    assert value("atoll_worker_resident_bytes", service=ODD, worker="1") == 2000


def test_the_text_made_without_the_client_says_the_same(pools: list[Pool]) -> None:
    types, samples = parsed(atoll.prometheus.to_text(lambda: pools))
    expected_types, expected = parsed(exposed(pools))
    assert samples == expected
    assert types == expected_types


def test_no_pools_is_no_error() -> None:
    assert parsed(exposed([]))[1] == parsed(atoll.prometheus.to_text(list))[1] == {}


def test_a_closed_pool_is_gone_from_the_next_scrape(pools: list[Pool]) -> None:
    collector = atoll.prometheus.collector(lambda: pools)
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)

    def services() -> set[str]:
        return {sample.labels["service"] for metric in registry.collect() for sample in metric.samples}

    assert services() == {"vision", ODD}
    pools.pop()
    assert services() == {"vision"}


def test_a_second_registration_is_refused_and_a_first_can_be_taken_back() -> None:
    registry = prometheus_client.CollectorRegistry()
    collector = atoll.prometheus.register(registry)
    with pytest.raises(ValueError, match="in this registry already: register them once"):
        atoll.prometheus.register(registry)
    registry.unregister(collector)
    registry.unregister(atoll.prometheus.register(registry))


def test_a_server_serves_living_pools_to_this_machine_only(monkeypatch: pytest.MonkeyPatch, pools: list[Pool]) -> None:
    monkeypatch.setattr(atoll.prometheus, "_living_pools", lambda: pools)
    server, thread = atoll.prometheus.start_server(0)
    try:
        assert server.server_address[0] == "127.0.0.1"
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=20) as answer:
            _, samples = parsed(answer.read().decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert samples["atoll_queue_depth", frozenset({("service", "vision")})] == 4


def test_calls_of_a_real_pool_are_scraped_until_it_is_closed() -> None:
    @atoll.function
    def divide(one: int, other: int) -> float:
        return one / other

    for other in (1, 2, 0):
        with contextlib.suppress(ZeroDivisionError):
            divide(1, other)
    _, samples = parsed(atoll.prometheus.to_text())
    counted = {
        dict(labels)["outcome"]: value
        for (name, labels), value in samples.items()
        if name == "atoll_call_duration_seconds_count" and ("function", "divide") in labels
    }
    assert counted == {"ok": 2, "error": 1}
    (resident,) = (value for (name, _), value in samples.items() if name == "atoll_worker_resident_bytes")
    assert resident > 1e6
    assert len(atoll.pool.pools()) == 1
    divide.close()
    assert atoll.pool.pools() == []
    assert parsed(atoll.prometheus.to_text())[1] == {}


def test_without_the_client_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import atoll.prometheus\n"
        "assert atoll.prometheus.to_text() == ''\n"
        "try: atoll.prometheus.register()\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert 'pip install "atoll[prometheus]"' in done.stdout, done.stderr


def test_numbers_are_written_as_prometheus_reads_them() -> None:
    def number(value: Any) -> str:
        return atoll.prometheus._number(value)

    assert [number(one) for one in (math.inf, 5e-6, 3)] == ["+Inf", "5e-06", "3.0"]
