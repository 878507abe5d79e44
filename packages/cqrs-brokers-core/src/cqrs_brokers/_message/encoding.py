"""Turns a payload that is no bytes into compact JSON in UTF-8. A value without a JSON form is refused.

The module `jsonable` says which values have a JSON form. `None` is accepted inside a payload, but not as the payload.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from .jsonable import UnencodableError, jsonable, where_text_fails
from .tombstone import TOMBSTONE

__all__ = ["content_type_of", "encode"]

JSON = "application/json"
BYTES = "application/octet-stream"


def encode(payload: object) -> bytes:
    """Returns the JSON of a payload.

    Raises:
        UnencodableError: The payload is None, or the payload or something in it has no JSON form, or code of the
            payload raised an error.
    """
    if payload is None:
        raise UnencodableError("the payload is None: give a mapping, or TOMBSTONE to delete the key")
    ready = jsonable(payload, "payload")
    try:
        return to_json(ready)
    except PydanticSerializationError:  # a lone surrogate
        problem = UnencodableError(where_text_fails(ready, "payload"))
    # Raised here, outside the handler: the error of pydantic may quote the payload, and would become the context.
    raise problem


def content_type_of(message: Any) -> str:
    """The content type that goes on the wire with a message. "": a tombstone without a content type."""
    content_type: str | None = message.content_type
    if content_type:
        return content_type
    payload = message.payload
    return BYTES if type(payload) is bytes else "" if payload is TOMBSTONE else JSON
