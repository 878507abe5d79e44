"""One set of instruments for each meter provider, shared by all observers that use it.

A meter makes an observable instrument only once. The SDK drops the callbacks of a second instrument with the same name,
and so the metrics of a second broker. So all observers share one set of instruments, which reads all their brokers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import add
from threading import Lock
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import Meter, MeterProvider, Observation

from . import _names as names
from ._tracing import Attributes

__all__ = ["PerProvider", "largest", "total"]

T = TypeVar("T")
N = TypeVar("N", int, float)
PROXY = "_ProxyMeterProvider"
"""The class that the API returns until the application sets a provider. It has no public name."""


class PerProvider(Generic[T]):
    """Makes an object once for each meter provider, and keeps it at least as long as the provider exists.

    Args:
        scope: The name of the meter.
        make: Makes the object.
    """

    def __init__(self, scope: str, make: Callable[[Meter], T]) -> None:
        self._scope = scope
        self._make = make
        self._made: WeakKeyDictionary[MeterProvider, T] = WeakKeyDictionary()
        self._early: T | None = None
        """The object that was made before the application set the global provider. When the provider is set, the
        instruments become that provider's."""
        self._lock = Lock()

    def of(self, provider: MeterProvider | None) -> T:
        """The object of a provider. None: of the global one."""
        with self._lock:
            current = metrics.get_meter_provider()
            provider = current if provider is None else provider
            made = self._made.get(provider)
            if made is None and provider is current and self._early is not None:
                made, self._early = self._early, None
                self._made[provider] = made
            if made is None:
                made = self._make(metrics.get_meter(self._scope, "", provider, names.SCHEMA_URL))
                self._made[provider] = made
                if type(provider).__name__ == PROXY:
                    self._early = made
            return made


def total(values: Iterable[tuple[int, Attributes]]) -> list[Observation]:
    """One observation for each set of attributes: the sum of the values."""
    return _joined(values, add)


def largest(values: Iterable[tuple[float, Attributes]]) -> list[Observation]:
    """An observation for each set of attributes: the largest value."""
    return _joined(values, max)


def _joined(values: Iterable[tuple[N, Attributes]], join: Callable[[N, N], N]) -> list[Observation]:
    found: dict[frozenset[tuple[str, str | int]], N] = {}
    for value, attributes in values:
        key = frozenset(attributes.items())
        found[key] = join(found[key], value) if key in found else value
    return [Observation(value, dict(key)) for key, value in found.items()]
