"""Counters for Prometheus: of requests by model and status, of tokens, of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class EngineStats(Collector):
    """What the engine says of itself when it is asked."""

    def __init__(self, stats: Callable[[], Mapping[str, float]]) -> None:
        self.stats = stats

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One gauge each."""
        for name, value in self.stats().items():
            yield GaugeMetricFamily(f"shoestring_engine_{name}", "As the engine counts.", value=value)


class Metrics:
    """Labels are names of served models and statuses alone, so that no client can make new ones."""

    def __init__(self, stats: Callable[[], Mapping[str, float]] | None = None) -> None:
        """stats: of an engine."""
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter(
            "shoestring_requests", "Requests that ended.", ("model", "endpoint", "status"), registry=self.registry
        )
        self.prompt_tokens = Counter("shoestring_prompt_tokens", "Tokens read.", ("model",), registry=own)
        self.cached_tokens = Counter("shoestring_cached_tokens", "Of them kept from earlier.", ("model",), registry=own)
        self.new_tokens = Counter("shoestring_completion_tokens", "Tokens written.", ("model",), registry=own)
        self.cost = Counter("shoestring_cost_usd", "Dollars at the machine's price.", ("model",), registry=own)
        self.first_s = Histogram(
            "shoestring_first_token_seconds", "Until the first text.", ("model",), buckets=SECONDS, registry=own
        )
        self.whole_s = Histogram(
            "shoestring_request_seconds", "Until the end.", ("model",), buckets=SECONDS, registry=own
        )
        self.in_flight = Gauge("shoestring_answers_in_flight", "Answers on their way or waiting.", registry=own)
        self.usage_waiting = Gauge(
            "shoestring_usage_records_waiting", "Of usage.jsonl, which cannot be written.", registry=own
        )
        if stats is not None:
            self.registry.register(EngineStats(stats))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
