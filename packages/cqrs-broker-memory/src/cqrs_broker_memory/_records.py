"""The messages that were published to a `memory://` broker, for tests that read them.

The messages are kept by the broker's name until `clear()` is called or the process ends. So a test can read the
messages after its event loop has ended. The messages may be read in any thread and without an event loop.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Self

from cqrs_brokers.driver import HeaderValue, Message, content_type_of

from ._script import Faults, Script

__all__ = ["DEFAULT_NAME", "Published", "Record", "published"]

DEFAULT_NAME = "default"
"""The broker's name if the string is only `memory://`."""


class _Any:
    """Stands for any value in the arguments of `find`, because `key=None` means a message without a key."""

    def __repr__(self) -> str:
        return "any"


_ANY: Final = _Any()


@dataclass(frozen=True, slots=True, repr=False)
class Record:
    """One message, as it was when it was sent.

    `str` and `repr` show the name, the id, the topic and the size of the body. They never show the body, a header or
    the key.

    Attributes:
        topic: The topic.
        name: The message name.
        key: The ordering key, or None.
        headers: The headers.
        body: The bytes that a real broker would have got; None for a tombstone.
        message_id: The message id, as the text that consumers of real brokers see.
        content_type: The MIME type of the body; "" for a tombstone without a content type.
        timestamp: The message's time, with a time zone.
    """

    topic: str
    name: str
    key: str | None
    headers: Mapping[str, HeaderValue]
    body: bytes | None
    message_id: str
    content_type: str
    timestamp: datetime

    @classmethod
    def of(cls, message: Message) -> Self:
        """Makes a record of a message."""
        return cls(
            message.topic,
            message.message_name,
            message.key,
            MappingProxyType(dict(message.headers)),
            message.body,
            str(message.message_id),
            content_type_of(message),
            message.timestamp,
        )

    def json(self) -> Any:
        """The body, decoded from JSON.

        Raises:
            ValueError: The body is not JSON, or the message is a tombstone.
        """
        if self.body is None:
            raise ValueError("a tombstone has no body")
        return json.loads(self.body)

    def __repr__(self) -> str:
        size = "tombstone" if self.body is None else f"{len(self.body)} bytes"
        return f"<Record {self.name!r:.80} {self.message_id} topic={self.topic!r:.80} {size}>"


class Published:
    """The messages of one `memory://name`, in the order in which they were kept.

    An iteration gives the records that were kept when the iteration began.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.script: Script | None = None
        """The script that `play` set. None: each broker plays the script of its own config string."""
        self._records: list[Record] = []
        self._lock = threading.Lock()

    def keep(self, record: Record, capacity: int) -> bool:
        """Adds a record. The driver calls this method.

        Returns:
            Whether the record was added. False: there are `capacity` records already.
        """
        with self._lock:
            if len(self._records) >= capacity:
                return False
            self._records.append(record)
            return True

    def find(
        self,
        *,
        topic: str | _Any = _ANY,
        name: str | _Any = _ANY,
        key: str | _Any | None = _ANY,
        headers: Mapping[str, HeaderValue] | None = None,
    ) -> list[Record]:
        """The records that match all given arguments.

        Args:
            topic: Exactly this topic.
            name: Exactly this message name.
            key: Exactly this key. None: a message without a key.
            headers: These headers, with values of the same types. A record may have further headers.
        """
        return [record for record in self if not _differences(record, topic, name, key, headers)]

    def assert_once(
        self,
        *,
        topic: str | _Any = _ANY,
        name: str | _Any = _ANY,
        key: str | _Any | None = _ANY,
        headers: Mapping[str, HeaderValue] | None = None,
    ) -> Record:
        """Asserts that exactly one record matches all given arguments, which are those of `find`.

        Returns:
            The record.

        Raises:
            AssertionError: No record matches, or more than one. The text lists the first 20 records, with both values
                of each field that differs. Of a body the text shows only the size.
        """
        found, listed = [], []
        for record in self:
            differences = _differences(record, topic, name, key, headers)
            if not differences:
                found.append(record)
            listed.append(f"{record!r}: {', '.join(differences) if differences else 'matches'}")
        if len(found) == 1:
            return found[0]
        wanted = f"topic={topic!r}, name={name!r}, key={key!r}" + (f", headers={headers!r:.200}" if headers else "")
        raise AssertionError(
            f"{len(found)} messages match in memory://{self.name}, not 1 ({wanted}); published: {len(listed)}"
            + "".join(f"\n- {line}" for line in listed[:_LISTED])
            + (f"\n- and {len(listed) - _LISTED} more" if len(listed) > _LISTED else "")
        )

    def play(self, faults: Faults | None) -> None:
        """Lets every broker of this name play another script from now on, also those that are open.

        Args:
            faults: The faults of the script, counted from now. The messages and calls of all brokers of this name are
                counted together. None: each broker goes on with the script of its own config string, where that script
                had stopped.
        """
        self.script = None if faults is None else Script(faults)

    def clear(self) -> None:
        """Forgets all records and the script of `play`, for the next test. The scripts of config strings go on
        where they had stopped."""
        self.script = None
        with self._lock:
            self._records.clear()

    def __iter__(self) -> Iterator[Record]:
        with self._lock:
            return iter(tuple(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def __repr__(self) -> str:
        return f"<Published memory://{self.name} {len(self)} messages>"


_LISTED = 20
_by_name: dict[str, Published] = {}


def published(name: str = DEFAULT_NAME) -> Published:
    """Returns the messages that were published to `memory://name`. Each call with the same name returns the same
    object."""
    return _by_name.setdefault(name, Published(name))


def _differences(
    record: Record,
    topic: str | _Any,
    name: str | _Any,
    key: str | _Any | None,
    headers: Mapping[str, HeaderValue] | None,
) -> list[str]:
    """Returns a text for each difference between the record and the wanted values. The text has both values."""
    fields = (("topic", topic, record.topic), ("name", name, record.name), ("key", key, record.key))
    differences = [
        f"{what} is {there!r:.80}, not {wanted!r:.80}"
        for what, wanted, there in fields
        if wanted is not _ANY and wanted != there
    ]
    for header, value in (headers or {}).items():
        if not _has(record, header, value):
            there = f"is {record.headers[header]!r:.80}" if header in record.headers else "is missing"
            differences.append(f"header {header!r} {there}, not {value!r:.80}")
    return differences


def _has(record: Record, header: str, value: HeaderValue) -> bool:
    there = record.headers.get(header)
    return header in record.headers and type(there) is type(value) and there == value  # 1 is not True, and not 1.0
