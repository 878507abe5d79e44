"""The contexts of spans that are not sampled, where this is known without asking the SDK.

For a message that is not sampled, `start_span` is the call that takes longest. If the sampler never samples, the result
of the call is known: a new span id, in the trace of the parent or in a new trace.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from cqrs_brokers.protocol import HeaderValue

__all__ = ["TRACEPARENT", "Unsampled"]

TRACEPARENT = "traceparent"
"""W3C's header of a context."""
_SDK = "opentelemetry.sdk.trace"
_NOT_SAMPLED = TraceFlags(0xFF & ~TraceFlags.SAMPLED)


class Unsampled:
    """Makes the contexts that a tracer of the SDK gives to the spans that it drops.

    Args:
        tracer: A tracer that drops every span whose parent is not sampled.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._sampler = tracer.sampler
        self._ids = tracer.id_generator
        # Which flags the SDK sets depends on its version.
        parent = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=_NOT_SAMPLED)
        child = tracer.start_span("", trace.set_span_in_context(NonRecordingSpan(parent), Context()))
        root = tracer.start_span("", Context()).get_span_context()
        self._inherited: int = child.get_span_context().trace_flags
        self._of_root = f"{root.trace_flags:02x}"
        self._is_enabled: bool = root.is_valid

    @classmethod
    def of(cls, tracer: Any) -> Unsampled | None:
        """Returns None if the tracer is to be asked for each span: it may sample one, or it counts those that it
        drops."""
        sdk: Any = sys.modules.get(_SDK)
        sampling: Any = sys.modules.get(f"{_SDK}.sampling")
        if sdk is None or sampling is None or type(tracer) is not sdk.Tracer or _counts_spans():
            return None
        sampler = tracer.sampler
        for known in (sampling.ALWAYS_OFF, sampling.DEFAULT_OFF):
            if type(sampler) is type(known) and vars(sampler) == vars(known):  # so it does the same
                found = cls(tracer)
                return found if found._is_enabled else None
        return None

    def headers(self, context: Context) -> Mapping[str, HeaderValue] | None:
        """Returns W3C's header for a new span in that context. None: the tracer is to be asked."""
        if self._tracer.sampler is not self._sampler:
            return None
        ids = self._ids
        span_id = ids.generate_span_id().to_bytes(8).hex()
        if not context:
            return {TRACEPARENT: f"00-{ids.generate_trace_id().to_bytes(16).hex()}-{span_id}-{self._of_root}"}
        parent = trace.get_current_span(context).get_span_context()
        if len(context) > 1 or not parent.is_valid or parent.trace_state or parent.trace_flags & TraceFlags.SAMPLED:
            return None  # baggage, something of an application, or a sampled trace
        return {TRACEPARENT: f"00-{parent.trace_id:032x}-{span_id}-{parent.trace_flags & self._inherited:02x}"}


def _counts_spans() -> bool:
    """Whether the SDK has metrics of its own, which count the spans that it drops."""
    if f"{_SDK}._tracer_metrics" not in sys.modules:
        return False
    variables = sys.modules.get("opentelemetry.sdk.environment_variables")
    switch = getattr(variables, "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", None)
    return switch is None or switch in os.environ  # the first versions with these metrics have no switch
