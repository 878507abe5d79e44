"""The schema with which pydantic (and so FastAPI) writes and reads a `Receipt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import core_schema

if TYPE_CHECKING:
    from cqrs_brokers.protocol import Receipt

__all__ = ["schema"]


def schema(cls: type[Receipt]) -> core_schema.CoreSchema:
    """Returns the schema. In Python, the schema accepts a receipt, or a dict with all fields of a receipt. In JSON, the
    schema accepts an object with these fields. A receipt is written as its `to_dict()`."""
    number = core_schema.nullable_schema(core_schema.int_schema())
    field = core_schema.typed_dict_field
    others = {
        "topic": field(core_schema.str_schema()),
        "broker": field(core_schema.str_schema()),
        "confirmed": field(core_schema.bool_schema()),
        "partition": field(number),
        "offset": field(number),
    }
    known = core_schema.typed_dict_schema({"message_id": field(core_schema.uuid_schema())} | others)
    written = core_schema.typed_dict_schema({"message_id": field(core_schema.str_schema())} | others)

    from_fields = core_schema.no_info_after_validator_function(lambda fields: cls(**fields), known)
    return core_schema.json_or_python_schema(
        json_schema=from_fields,
        python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), from_fields]),
        serialization=core_schema.plain_serializer_function_ser_schema(cls.to_dict, return_schema=written),
    )
