"""`OpenTelemetryObserver`: one broker's spans and metrics.

    before_send   starts a message's span, unless it is known to be dropped, and returns its context as headers
    before_batch  starts the span of a `send_messages` with several messages
    sent          counts, measures, and ends spans
    attached      lets gauges read the broker's state when metrics are collected: see `_instruments`

The context is that of the call: `before_send` and `before_batch` run in it. A message that carries a context already,
for example from an outbox row, continues that trace. Its span then links to the current span.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Link, Span, TracerProvider

from cqrs_brokers import ConfigError, DeliveryError, Message, Observer, Receipt
from cqrs_brokers.observers import ObservedBroker
from cqrs_brokers.protocol import HeaderValue
from cqrs_brokers.url import BrokerURL

from . import _names as names
from ._batch import Batch
from ._instruments import instruments
from ._outcomes import Outcomes
from ._tracing import Attributes, Tracing, end_message

__all__ = ["OpenTelemetryObserver"]


class OpenTelemetryObserver(Observer):
    """Makes a PRODUCER span for each message that is sent, puts its context into the message's headers, and keeps
    metrics. Messages of a batch that the sampler drops carry the context of the batch instead.

    Make one for each broker. The brokers that use one meter provider share its instruments. Names follow
    OpenTelemetry's messaging conventions.

    Args:
        tracer_provider: The tracer provider. Default: the global one.
        meter_provider: The meter provider. Default: the global one.
        propagator: Writes the context into headers. Default: the global one (W3C `traceparent` and `baggage`, unless
            the application, or `OTEL_PROPAGATORS`, says otherwise).
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        propagator: TextMapPropagator | None = None,
    ) -> None:
        self._tracing = Tracing(tracer_provider, propagator)
        self._instruments = instruments.of(meter_provider)
        self._outcomes = Outcomes(self._instruments)
        self._is_attached = False
        self._where: Attributes = {}
        self._pending: dict[int, Span | Batch] = {}
        """The recording spans and the batches, by the identity of a message, until the message has its outcome. A
        message of a batch has the batch here."""

    # -- what the broker tells ----------------------------------------------------------------------------------------

    def attached(self, broker: ObservedBroker) -> None:
        """See `Observer`.

        Raises:
            ConfigError: The observer has a broker already.
        """
        if self._is_attached:
            raise ConfigError("an OpenTelemetryObserver serves one broker, and this one already has it: make another")
        self._is_attached = True
        scheme = broker.name.partition("+")[0]
        self._where = {names.SYSTEM: names.SYSTEMS.get(scheme, scheme), **_server(broker.url)}
        self._tracing.common = self._outcomes.common = self._where
        self._instruments.observe(broker, self._where, self._outcomes.failing)

    def before_send(self, message: Message) -> Mapping[str, HeaderValue] | None:
        """See `Observer`."""
        context, links = get_current(), None
        carried = self._tracing.carried(message.headers) if message.headers else None
        unsampled = self._tracing.unsampled(context if carried is None else carried)
        if unsampled is not None:
            return unsampled
        if carried is not None:
            here = trace.get_current_span(context).get_span_context()
            context, links = carried, [Link(here)] if here.is_valid else None
        span, headers = self._tracing.start(message, names.SEND, context, links)
        if span.is_recording():
            self._pending[id(message)] = span
        return headers

    def before_batch(self, count: int) -> Batch | None:
        """See `Observer`. For one message there is no `Batch`: it has the same span as with `send_message`."""
        return Batch(self._tracing, self._outcomes, self._pending, count) if count > 1 else None

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        """See `Observer`."""
        series = self._outcomes.count(message, outcome, elapsed)
        pending = self._pending.pop(id(message), None) if self._pending else None
        if pending is None:
            self._outcomes.took(series, elapsed, None)
        elif isinstance(pending, Batch):
            pending.sent(message, series, outcome, elapsed)
        else:
            self._outcomes.took(series, elapsed, pending)
            end_message(pending, outcome)

    def connection_changed(self, state: str, reason: str) -> None:
        """See `Observer`."""
        self._instruments.changes.add(1, {**self._where, "state": state})


def _server(url: str | None) -> Attributes:
    """The attributes for the host and its port, or for all hosts. Without a host in the string there are none. The name
    in `memory://name` counts as a host."""
    if url is None:
        return {}
    scheme, _, rest = url.partition("://")
    hosts = BrokerURL.parse(f"{scheme}://{re.split('[/?]', rest)[0].rpartition('@')[2]}").hosts
    if not hosts:
        return {}
    if len(hosts) > 1:
        return {names.SERVER_ADDRESS: ",".join(str(host) for host in hosts)}
    (host,) = hosts
    return {names.SERVER_ADDRESS: host.host} | ({} if host.port is None else {names.SERVER_PORT: host.port})
