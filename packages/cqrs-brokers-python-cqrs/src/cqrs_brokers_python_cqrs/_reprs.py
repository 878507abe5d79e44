"""Warns of payloads that python-cqrs has turned into the text of their repr.

python-cqrs' own `NotificationEvent` is a dataclass. It writes a payload that it cannot convert, above all a pydantic
model, as `str(payload)`. This text is valid JSON, and the message is confirmed, but no consumer can read the payload.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping

__all__ = ["ReprWarnings"]

_logger = logging.getLogger("cqrs_brokers_python_cqrs")

# `order_id='7' total=5`, pydantic's `str`; `Order(order_id='7')` and `<shop.Order object at 0x7f…>`, Python's reprs.
_REPR = re.compile(
    r"[A-Za-z_]\w*=(?:'|\"|[-\d\[{(<]|None|True|False|[A-Z]\w*\()|[A-Z]\w*\([A-Za-z_]\w*=.*\)\Z|<[\w.]+ object at 0x",
    re.DOTALL,
)
_OWN_FIELDS = frozenset({"eventId", "eventTimestamp", "eventName", "payload"})


class ReprWarnings:
    """Warns once for each message name."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def look_at(self, name: str, body: object) -> None:
        """Warns if the payload in this body is the text of a repr. Bodies that do not come from python-cqrs' own events
        are ignored."""
        if not isinstance(body, Mapping) or not body.keys() >= _OWN_FIELDS or name in self._warned:
            return
        payload = body["payload"]
        if not isinstance(payload, str) or not _REPR.match(payload):
            return
        self._warned.add(name)
        text = (
            f"python-cqrs wrote the payload of {name} as the text of its repr, which no consumer can read: derive the "
            "event from cqrs_brokers_python_cqrs.NotificationEvent or ECSTEvent, or make its payload a dataclass"
        )
        try:
            warnings.warn(text, UserWarning, stacklevel=4)  # the code that awaits `BrokerAdapter.send_message`
        except UserWarning:  # warnings are errors: no reason to lose the message
            _logger.warning("%s", text)
