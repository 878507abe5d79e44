"""What a message looks like on NATS' wire, and which subjects there are."""

import hashlib
import re

from cqrs_brokers.driver import Message, content_type_of
from cqrs_brokers.pipeline import header_name, header_value

__all__ = ["Frame", "refusal_of_subject"]

NOT_FOR_USERS = re.compile(r"nats-|timestamp$", re.IGNORECASE)
"""Headers with a meaning. A user's header of such a name travels with its first letter encoded."""


class Frame:
    """A message, ready to be written; only the subject for the answer is missing."""

    def __init__(self, message: Message) -> None:
        fields = {
            "message-id": str(message.message_id),
            "message-name": header_value(message.message_name),
            "content-type": header_value(content_type_of(message)),
            "timestamp": message.timestamp.isoformat(),
        }
        if message.key is not None:
            fields["ordering-key"] = header_value(message.key)
        fields |= {_user_name(name): header_value(str(value)) for name, value in message.headers.items()}
        self.subject = message.topic.encode()
        self.body = message.body or b""
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
        # With the digest in it, a "duplicate" proves that this very message is stored, not another one with its id.
        digest = hashlib.sha256(b"%d %b%d %b%b" % (len(self.subject), self.subject, len(lines), lines, self.body))
        self.head = b"NATS/1.0\r\nNats-Msg-Id: %b.%b\r\n%b\r\n" % (
            fields["message-id"].encode(),
            digest.hexdigest()[:32].encode(),
            lines,
        )

    @property
    def size(self) -> int:
        """Bytes of headers and body, as the server's `max_payload` counts them."""
        return len(self.head) + len(self.body)

    def lines(self, reply: str) -> list[bytes]:
        """The frame, with the subject for its answer; the body is not copied."""
        command = b"HPUB %b %b %d %d\r\n" % (self.subject, reply.encode(), len(self.head), self.size)
        return [command, self.head, self.body, b"\r\n"]


def _user_name(name: str) -> str:
    encoded = header_name(name)
    return f"%{ord(encoded[0]):02X}{encoded[1:]}" if NOT_FOR_USERS.match(encoded) else encoded


def refusal_of_subject(topic: str) -> str | None:
    """Why NATS has no such subject for a message, or None."""
    words = topic.split(".")
    if any(character.isspace() for character in topic) or "" in words:
        return "a subject is words with single dots between them, without blanks"
    if "*" in words or ">" in words:
        return "* and > are wildcards of subscribers: publish to a whole subject"
    if topic.startswith(("$", "_INBOX.")):
        return "subjects that begin with $ or _INBOX. are the server's own"
    return None
