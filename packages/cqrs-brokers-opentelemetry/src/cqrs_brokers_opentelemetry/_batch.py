"""One `send_messages`: its span, and the measurements that are made once for all its messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from opentelemetry.trace import Link, Span, Status, StatusCode

from cqrs_brokers import DeliveryError, Message, Receipt
from cqrs_brokers.protocol import HeaderValue

from . import _names as names
from ._instruments import Series
from ._outcomes import Outcomes
from ._tracing import Tracing, end_message

__all__ = ["Batch"]


class Batch:
    """The span of the call, with a link to the span of each message. It ends when the call has made its messages ready,
    and all messages with spans have their outcomes. Messages that were refused before have no spans.

    If the sampler drops the batch, the messages get no spans of their own. They carry the context of the batch, as the
    conventions say for messages without spans. If it records the batch, it is asked for each message too. For a message
    that carries a context already, it is asked in any case, because the message belongs to another trace.

    Args:
        tracing: Starts spans.
        outcomes: Measures the outcomes.
        pending: The observer's table: which object to tell of a message's outcome, by the message's identity.
        count: How many messages the call was given.
    """

    def __init__(self, tracing: Tracing, outcomes: Outcomes, pending: dict[int, Span | Batch], count: int) -> None:
        self._tracing = tracing
        self._outcomes = outcomes
        self._pending = pending
        self._span, self._context = tracing.start_batch(count)
        self._recording = self._span.is_recording()
        self._link = Link(self._span.get_span_context())
        self._headers = None if self._recording else tracing.headers(self._context)
        self._follows = self._recording or outcomes.measures
        """Whether the batch is told of the outcomes of messages without spans."""
        self._spans: dict[int, Span] = {}
        """The recording spans of messages."""
        self._topics: set[str] = set()
        self._unanswered = 0
        self._is_complete = False
        self._took: dict[Series, float] = {}
        """Seconds until the last outcome of each series."""
        self._failed = Counter[str]()
        self._of_batch = 0

    def before_send(self, message: Message, /) -> Mapping[str, HeaderValue]:
        """See `BatchObserver`."""
        carried = self._tracing.carried(message.headers) if message.headers else None
        if carried is None and self._headers is not None:
            if self._follows:
                self._follow(message)
            return self._headers
        if carried is None:
            span, headers = self._tracing.start(message, names.CREATE, self._context, None)
        else:
            span, headers = self._tracing.start(message, names.CREATE, carried, [self._link])
        is_recording = span.is_recording()
        if is_recording or self._follows:
            self._follow(message)
        if is_recording:
            self._spans[id(message)] = span
        if self._recording:
            self._span.add_link(span.get_span_context())
            self._topics.add(message.topic)
        return headers

    def _follow(self, message: Message) -> None:
        self._unanswered += 1
        self._pending[id(message)] = self

    def complete(self) -> None:
        """See `BatchObserver`."""
        self._is_complete = True
        if not self._unanswered:
            self._end()

    def sent(self, message: Message, series: Series, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        """One of the messages that the batch follows has its outcome."""
        self._took[series] = elapsed  # all of them began together: the last one is the longest
        if self._recording:
            self._of_batch += 1
            if series.error_type:
                self._failed[series.error_type] += 1
        if self._spans:
            span = self._spans.pop(id(message), None)
            if span is not None:
                end_message(span, outcome)
        self._unanswered -= 1
        if self._is_complete and not self._unanswered:
            self._end()

    def _end(self) -> None:
        span = self._span if self._recording else None
        for series, seconds in self._took.items():
            self._outcomes.took(series, seconds, span)
        if span is None:
            return
        if len(self._topics) == 1:
            (topic,) = self._topics
            span.update_name(f"{names.SEND} {topic}")
            span.set_attribute(names.DESTINATION, topic)
        if self._failed:
            error_type = next(iter(self._failed)) if len(self._failed) == 1 else names.OTHER
            span.set_attribute(names.ERROR_TYPE, error_type)
            text = ", ".join(f"{count} {name}" for name, count in self._failed.items())
            span.set_status(Status(StatusCode.ERROR, f"of {self._of_batch} messages: {text}"))
        span.end()
