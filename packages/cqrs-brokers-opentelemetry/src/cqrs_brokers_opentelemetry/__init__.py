"""OpenTelemetry for cqrs-brokers: a span per message, its context in the message's headers, and metrics.

    broker = open_broker("kafka://localhost:9092", observers=[OpenTelemetryObserver()])

It uses only OpenTelemetry's API. The application chooses the SDK, the exporter, the sampler and the propagator.
`cqrs_brokers_opentelemetry.outbox` has the metrics of an outbox.
"""

from ._observer import OpenTelemetryObserver

__all__ = ["OpenTelemetryObserver"]
