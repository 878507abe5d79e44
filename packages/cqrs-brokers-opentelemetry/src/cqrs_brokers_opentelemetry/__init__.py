"""OpenTelemetry for cqrs-brokers: a span per message, its context in the message's headers, and metrics.

    broker = open_broker("kafka://localhost:9092", observers=[OpenTelemetryObserver()])

It uses OpenTelemetry's API only: which SDK, exporter, sampler and propagator there are, the application decides.
`cqrs_brokers_opentelemetry.outbox` has the metrics of an outbox.
"""

from ._observer import OpenTelemetryObserver

__all__ = ["OpenTelemetryObserver"]
