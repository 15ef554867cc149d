# SPDX-License-Identifier: Apache-2.0
"""The metrics of all pools of this process for Prometheus. Needs the extra ``atoll[prometheus]``, but for ``to_text``.

::

    import atoll.prometheus

    atoll.prometheus.register()              # beside what the program exposes already
    atoll.prometheus.start_server(9464)      # or on a port of their own

Pools are looked up at every scrape, and nothing here keeps them alive: those closed are gone from the next scrape on,
those made later are in it. Pools of services with the same name are added up; when one of several is closed, their
counters go down, which Prometheus takes for a restart. What does not belong here: what is counted
(``atoll.pool.metrics``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from .pool import pools as _living_pools
from .pool.metrics import Distribution, Metric, PoolMetrics, Snapshot, merged

if TYPE_CHECKING:
    import threading
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

__all__ = ["collector", "register", "start_server", "to_text"]


class _HasMetrics(Protocol):
    def metrics(self) -> Iterable[Metric]: ...


_Pools = Callable[[], Iterable[_HasMetrics]]


def _prometheus_client() -> Any:
    try:
        import prometheus_client
        import prometheus_client.core
    except ImportError as error:
        raise ImportError(
            f'atoll.prometheus needs prometheus_client ({error}): pip install "atoll[prometheus]"', name=error.name
        ) from None
    return prometheus_client


def _metrics(pools: _Pools | None) -> list[Metric]:
    return merged(metric for pool in (pools or _living_pools)() for metric in pool.metrics())


def collector(pools: _Pools | None = None) -> Collector:
    """A custom collector for ``prometheus_client``, for a registry of your own.

    Args:
        pools: the pools to ask at every scrape; by default all that live in this process.

    Raises:
        ImportError: ``prometheus_client`` is not installed.
    """
    client = _prometheus_client()

    class PoolCollector:
        """Asks the pools at every scrape."""

        def collect(self) -> Iterator[Any]:
            for metric in _metrics(pools):
                yield _family(client.core, metric)

        def describe(self) -> Iterator[Any]:
            # The names alone, by which the registry notices a second registration.
            for metric in PoolMetrics("").metrics(Snapshot(0, 0, {}, {}, False)):
                yield _family(client.core, metric._replace(samples=()))

    return PoolCollector()


def _family(core: Any, metric: Metric) -> Any:
    kinds = {
        "counter": core.CounterMetricFamily,
        "gauge": core.GaugeMetricFamily,
        "histogram": core.HistogramMetricFamily,
    }
    names = sorted({name for sample in metric.samples for name in sample.labels})
    family = kinds[metric.kind](metric.name, metric.help, labels=names)
    for sample in metric.samples:
        labels = [sample.labels[name] for name in names]
        if isinstance(sample.value, Distribution):
            buckets = [(_number(bound), count) for bound, count in sample.value.buckets]
            family.add_metric(labels, buckets, sample.value.sum)
        else:
            family.add_metric(labels, sample.value)
    return family


def register(registry: CollectorRegistry | None = None) -> Collector:
    """Expose the metrics of all pools in a registry, and return the collector, which ``registry.unregister`` takes.

    Args:
        registry: by default that of ``prometheus_client``, which its servers and most frameworks expose.

    Raises:
        ImportError: ``prometheus_client`` is not installed.
        ValueError: it was registered there already.
    """
    client = _prometheus_client()
    registry = client.REGISTRY if registry is None else registry
    assert registry is not None
    made = collector()
    try:
        registry.register(made)
    except ValueError as error:
        raise ValueError(f"atoll's metrics are in this registry already: register them once ({error})") from None
    return made


def start_server(port: int, host: str = "127.0.0.1") -> tuple[WSGIServer, threading.Thread]:
    """Serve the metrics of all pools, and nothing else, over HTTP.

    Args:
        port: 0 for any free one, which ``server.server_port`` tells.
        host: the address to listen at; by default only this machine can connect.

    Returns:
        The server and its thread, which ends after ``server.shutdown()``; then ``server.server_close()``.

    Raises:
        ImportError: ``prometheus_client`` is not installed.
        OSError: the port is taken.
    """
    client = _prometheus_client()
    registry = client.CollectorRegistry()
    register(registry)
    served: tuple[WSGIServer, threading.Thread] = client.start_http_server(port, host, registry)
    return served


def to_text(pools: _Pools | None = None) -> str:
    """The metrics in Prometheus's text format, version 0.0.4, without ``prometheus_client``.

    For a program that has an HTTP server of its own: serve it as ``text/plain; version=0.0.4; charset=utf-8``.
    """
    lines = []
    for metric in _metrics(pools):
        lines += [f"# HELP {metric.name} {_escape(metric.help)}", f"# TYPE {metric.name} {metric.kind}"]
        for sample in metric.samples:
            labels = dict(sample.labels)
            if isinstance(sample.value, Distribution):
                for bound, count in sample.value.buckets:
                    lines.append(_line(f"{metric.name}_bucket", {**labels, "le": _number(bound)}, count))
                lines.append(_line(f"{metric.name}_count", labels, sample.value.total))
                lines.append(_line(f"{metric.name}_sum", labels, sample.value.sum))
            else:
                lines.append(_line(metric.name, labels, sample.value))
    return "".join(line + "\n" for line in lines)


def _line(name: str, labels: dict[str, str], value: float) -> str:
    inner = ",".join(f'{label}="{_escape(text, quoted=True)}"' for label, text in labels.items())
    return f"{name}{{{inner}}} {_number(value)}"


def _escape(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else repr(float(value))
