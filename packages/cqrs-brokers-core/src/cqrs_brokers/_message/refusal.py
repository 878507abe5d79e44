"""What becomes of an error that the application's own code raised on the way to the window."""

from __future__ import annotations

from uuid import UUID

from cqrs_brokers.exceptions import InvalidMessageError

__all__ = ["refusal", "safe_cause"]


def refusal(
    what: str, error: Exception, *, message_id: UUID | None = None, topic: str | None = None, broker: str = ""
) -> InvalidMessageError:
    """The error for a message whose own code raised.

    Args:
        what: Whose code: the subject of the sentence.
        error: What it raised. It becomes the cause, unless its text may quote the payload.
        message_id: The message's id, if known.
        topic: The message's topic, if known.
        broker: The broker's redacted URL, if known.
    """
    refused = InvalidMessageError(
        f"{what} raised {type(error).__name__}", message_id=message_id, topic=topic, broker=broker
    )
    refused.__cause__ = safe_cause(error)
    return refused


def safe_cause(error: BaseException | None) -> BaseException | None:
    """The error, or None when it, or what it came from, is of a kind that quotes the payload (pydantic, Unicode)."""
    one, seen = error, set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, UnicodeError) or any(base.__module__.startswith("pydantic") for base in type(one).__mro__):
            return None
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return error
