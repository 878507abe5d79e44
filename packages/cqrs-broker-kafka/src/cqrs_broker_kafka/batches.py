"""Batches in aiokafka's queue: filled when its sender takes them, and told their outcome at once.

Written for aiokafka 0.14, of which they use what is not documented; tests/kafka/test_internals.py has a test for each:

* `MessageBatch.record_count` and `.is_empty()`, which the sender asks first when it takes a batch: it is filled then.
* `MessageBatch.expired()`, which it asks while the partition has no leader, and fails the batch (`lanes.Batch` says
  when; the test is in test_error_codes.py).
* `MessageBatch.done`, `.done_noack`, `.failure` tell the outcome a turn of the event loop before its `future` does.
* `BatchBuilder` keeps the bytes of the records, which `append` makes without the serializers that we do not use.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch
from aiokafka.structs import TopicPartition

if TYPE_CHECKING:
    from .internals import Producer

__all__ = ["Builder", "QueuedBatch"]

logger = logging.getLogger("cqrs_broker_kafka.batches")


class Builder(BatchBuilder):  # type: ignore[misc]
    """aiokafka's builder of the bytes of a batch."""

    def append(
        self,
        *,
        timestamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> Any:
        """As `BatchBuilder`'s, without the serializers that we do not use. `timestamp` is in milliseconds.

        Returns:
            None when it is full.
        """
        taken = self._builder.append(self._relative_offset, timestamp, key, value, headers)
        if taken is not None:
            self._relative_offset += 1
        return taken

    def clear(self, size: int, compression: int) -> None:
        """Begins again."""
        self.__init__(size, compression)  # type: ignore[misc]


class QueuedBatch(MessageBatch):  # type: ignore[misc]
    """A batch in aiokafka's queue: filled when the sender takes it, and told its outcome at once.

    Args:
        producer: Whose queue.
        topic: The topic.
        partition: The partition.
    """

    def __init__(self, producer: Producer, topic: str, partition: int) -> None:
        accumulator = producer._client._message_accumulator
        self._made_of = accumulator._batch_size, accumulator._compression_type
        super().__init__(
            TopicPartition(topic, partition),
            Builder(*self._made_of),
            accumulator._batch_ttl,
            accumulator._linger_time,
        )
        self.producer = producer
        self.taken = False
        """The sender has it, or had it."""
        self._told = False

    def fill(self, append: Callable[..., Any]) -> bool:
        """To be overridden: called once, in the sender's task. A batch with nothing in it is not sent.

        Args:
            append: See `Builder.append`.

        Returns:
            False to begin again with an empty builder: this one is spoiled.
        """
        raise NotImplementedError

    def answered(self, offset: int | None, error: BaseException | None) -> None:
        """To be overridden: called once, with the outcome.

        Args:
            offset: Where the first record is; -1: the broker does not know any more (code 46); None: acks=0, or empty.
            error: Why it failed.
        """
        raise NotImplementedError

    @property
    def record_count(self) -> int:
        """See `MessageBatch`."""
        if not self.taken:
            self.taken = True
            self.producer._doubtful.discard((self.tp.topic, self.tp.partition))
            while not self.fill(self._builder.append):
                self._builder.clear(*self._made_of)
            self._builder.close()
        return int(self._builder.record_count())

    def is_empty(self) -> bool:
        """See `MessageBatch`."""
        return not self.record_count

    def done(self, base_offset: int, *args: Any, **how: Any) -> None:
        """See `MessageBatch`."""
        super().done(base_offset, *args, **how)
        self._tell(base_offset, None)

    def done_noack(self) -> None:
        """See `MessageBatch`."""
        super().done_noack()
        self._tell(None, None)

    def failure(self, exception: BaseException) -> None:
        """See `MessageBatch`."""
        super().failure(exception)
        self.future.exception()  # asked, or asyncio would complain
        self._tell(None, exception)

    def _tell(self, offset: int | None, error: BaseException | None) -> None:
        if not self._told:
            self._told = True
            try:
                self.answered(offset, error)
            except Exception:  # in aiokafka's sender task, which must not end
                logger.exception("unexpected error in the Kafka driver")
