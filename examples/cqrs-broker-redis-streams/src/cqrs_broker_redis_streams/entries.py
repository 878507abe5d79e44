"""What a message looks like in a stream. A consumer reads the same fields."""

from cqrs_brokers.driver import Message, content_type_of

__all__ = ["xadd"]


def xadd(message: Message, maxlen: int | None) -> list[bytes]:
    """The command that adds a message to the stream of its topic, as Redis reads it (RESP); the body is not copied."""
    fields = {
        "message-id": str(message.message_id),
        "message-name": message.message_name,
        "content-type": content_type_of(message),
        "timestamp": message.timestamp.isoformat(),
    }
    if message.key is not None:
        fields["ordering-key"] = message.key
    # The prefix: so that no header can take the place of a field of ours.
    fields |= {f"header:{name}": str(value) for name, value in message.headers.items()}
    limit = [] if maxlen is None else ["MAXLEN", "~", str(maxlen)]
    pairs = [word for field in fields.items() for word in field]
    words = ["XADD", message.topic, *limit, "*", *pairs, "body"]
    head = b"".join(b"$%d\r\n%b\r\n" % (len(raw), raw) for raw in map(str.encode, words))
    body = message.body or b""  # None only for a tombstone, which this driver does not declare
    return [b"*%d\r\n%b$%d\r\n" % (len(words) + 1, head, len(body)), body, b"\r\n"]
