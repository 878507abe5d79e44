"""Writes pydantic models and pydantic's dataclasses as JSON. The serializers of these classes are used. Everything else
follows the rule of `jsonable`.

pydantic alone would write NaN as `null`, a secret as asterisks, and a key of 1 as "1". If a field is declared with a
base class and holds an instance of a subclass, pydantic would by default leave out the fields that the subclass adds.
So this module reads the fields of a model and writes them by the rule of `jsonable`. The writer of a class follows
pydantic's schema of the class:

* names: the names of the fields in Python, or their serialization aliases if the model's configuration has
  `serialize_by_alias`;
* `exclude=True`: left out; `exclude_if`: left out if its function says so; computed fields and extra fields
  (`extra="allow"`): written;
* the model's own serializers: called as in pydantic's JSON mode; their results are written by the rule of `jsonable`;
* serializers deeper inside a field's type, or pydantic's own (`Base64Bytes`): pydantic turns the value of that field
  into what JSON can hold, and the result is written by the rule of `jsonable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic_core import PydanticSerializationError, SchemaSerializer

from .jsonable import (
    LARGEST,
    LEAST,
    MAX_DEPTH,
    NUMBERS,
    PLAIN,
    TOO_DEEP,
    WRITERS,
    Refused,
    Writer,
    asked,
    write,
    writer_of,
)

__all__ = ["model_writer"]

_MISSING = object()


class _Field(NamedTuple):
    """One field of a class.

    Attributes:
        name: The field's name in Python.
        key: The field's name in JSON.
        function: The field's own serializer, as pydantic's schema describes it. None: this module calls no
            serializer for the field.
        by_pydantic: Whether pydantic's serializers are used for the field.
        skip: Says whether a value is left out. None: no value is left out.
    """

    name: str
    key: str
    function: Mapping[str, Any] | None = None
    by_pydantic: bool = False
    skip: Callable[[Any], bool] | None = None


class _Info:
    """The argument `info` of serializers, in place of pydantic's `SerializationInfo`. A serializer reads from this
    object how the serializer was called."""

    mode = "json"
    by_alias = exclude_unset = exclude_defaults = exclude_none = exclude_computed_fields = False
    round_trip = serialize_as_any = polymorphic_serialization = False
    include = exclude = context = None

    def __init__(self, field_name: str = "") -> None:
        self.field_name = field_name

    def mode_is_json(self) -> bool:
        return True


def model_writer(kind: Any) -> Writer:
    """Returns the writer of a pydantic class."""
    schema = dict(kind.__pydantic_core_schema__)
    own = next(_models(schema, kind), schema)
    if own.get("root_model"):
        writer = _root(_field("root", own, schema, by_alias=False), kind)
    else:
        fields, plain = _fields(own, schema, kind)
        writer = _plain(tuple(field.name for field in fields)) if plain else _mixed(fields, kind)
    function = own.get("serialization")
    return writer if function is None else _by_model_serializer(function, writer)


# -- reading pydantic's schema -----------------------------------------------------------------------------------------


def _models(schema: Any, kind: type) -> Iterator[Mapping[str, Any]]:
    """The parts of a schema that describe the class."""
    if isinstance(schema, dict):
        if schema.get("cls") is kind and schema.get("type") in ("model", "dataclass"):
            yield schema
        else:
            for key, inner in schema.items():
                if key != "metadata":
                    yield from _models(inner, kind)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from _models(inner, kind)


def _fields(own: Mapping[str, Any], schema: Mapping[str, Any], kind: Any) -> tuple[list[_Field], bool]:
    """Returns the fields that are written, and whether `_plain` can write the class. `_plain` can write a model if
    the written fields have their Python names, no serializer and no `exclude_if`, and the model has no computed fields
    and allows no extra fields."""
    inside: Any = own["schema"]
    while inside["type"] not in ("model-fields", "dataclass-args"):
        inside = inside["schema"]
    configuration = getattr(kind, "model_config", None) or getattr(kind, "__pydantic_config__", None) or {}
    by_alias = bool(configuration.get("serialize_by_alias"))
    declared = inside["fields"]
    named = declared.items() if isinstance(declared, dict) else ((field["name"], field) for field in declared)
    fields = [
        _field(name, field, schema, by_alias)
        for name, field in named
        if not field.get("serialization_exclude") and not field.get("init_only")
    ]
    computed = [
        _field(field["property_name"], {**field, "schema": field["return_schema"]}, schema, by_alias)
        for field in inside.get("computed_fields", ())
    ]
    plain = own["type"] == "model" and not computed and configuration.get("extra") != "allow"
    return fields + computed, plain and all(field == _Field(field.name, field.name) for field in fields)


def _field(name: str, field: Mapping[str, Any], schema: Mapping[str, Any], by_alias: bool) -> _Field:
    key = (field.get("serialization_alias") or field.get("alias") or name) if by_alias else name
    skip = field.get("serialization_exclude_if")
    inner = field["schema"]
    found = list(_serializers(inner, schema, set()))
    if not found:
        return _Field(name, key, skip=skip)
    while inner.get("type") in ("default", "nullable") and "serialization" not in inner:
        inner = inner["schema"]
    function = inner.get("serialization")
    its_own = len(found) == 1 and found[0] is function and function["type"] in ("function-plain", "function-wrap")
    if its_own and not (getattr(function["function"], "__module__", "") or "").startswith("pydantic."):
        return _Field(name, key, function, skip=skip)
    return _Field(name, key, by_pydantic=True, skip=skip)


def _serializers(schema: Any, whole: Mapping[str, Any], seen: set[str]) -> Iterator[Mapping[str, Any]]:
    """The serializers in a field's type. Serializers inside models and pydantic's dataclasses are left out, because
    these classes have their own writers. Serializers of pydantic that the rule of `jsonable` replaces are left out,
    too."""
    if isinstance(schema, list | tuple):
        for inner in schema:
            yield from _serializers(inner, whole, seen)
    if not isinstance(schema, dict):
        return
    if schema.get("type") in ("model", "dataclass") and hasattr(schema.get("cls"), "__pydantic_core_schema__"):
        return
    if schema.get("type") == "definition-ref" and schema["schema_ref"] not in seen:
        seen.add(schema["schema_ref"])
        for definition in whole.get("definitions", ()):
            if definition.get("ref") == schema["schema_ref"]:
                yield from _serializers(definition, whole, seen)
    for key, inner in schema.items():
        if key == "serialization":
            if not _says_nothing(inner):
                yield inner
        elif key != "metadata":
            yield from _serializers(inner, whole, seen)


def _says_nothing(serializer: Mapping[str, Any]) -> bool:
    """Whether the serializer is pydantic's own serializer for a secret, or one of pydantic's internal serializers, such
    as the one for paths. Such a serializer is not used, because the rule of `jsonable` applies to these types. This
    rule refuses secrets."""
    function = serializer.get("function")
    module, name = getattr(function, "__module__", "") or "", getattr(function, "__qualname__", "")
    of_a_secret = module == "pydantic.types" and name.startswith("_serialize_secret")
    return of_a_secret or module.startswith("pydantic._internal")


# -- writing -----------------------------------------------------------------------------------------------------------


def _plain(names: tuple[str, ...]) -> Writer:
    """The writer for a model of the kind that `_fields` describes. Most models are of this kind."""

    def write_model(model: Any, depth: int) -> dict[str, Any]:
        if depth >= MAX_DEPTH:
            raise Refused(TOO_DEEP)
        depth += 1
        values = model.__dict__
        out: dict[str, Any] = {}
        name = ""
        try:
            for name in names:
                item = values.get(name, _MISSING)
                kind = type(item)
                if kind in PLAIN or (kind in NUMBERS and LEAST <= item <= LARGEST):
                    out[name] = item
                elif item is not _MISSING:
                    out[name] = (WRITERS.get(kind) or writer_of(kind))(item, depth)
        except Refused as refused:
            refused.path.append(name)
            raise
        return out

    return write_model


def _root(field: _Field, kind: Any) -> Writer:
    """The writer for a root model."""
    write_fields = _mixed([field], kind)

    def write_root(model: Any, depth: int) -> Any:
        try:
            return write_fields(model, depth)[field.key]
        except Refused as refused:
            if refused.path:
                refused.path.pop()  # the root has no name in JSON
            raise

    return write_root


def _mixed(fields: Sequence[_Field], kind: Any) -> Writer:
    """The writer for pydantic's dataclasses, and for models that `_plain` cannot write."""
    left_to_pydantic = {field.name for field in fields if field.by_pydantic}
    # The class's own serializer would write NaN as null. This one keeps NaN, so that `write` refuses it.
    pydantics = SchemaSerializer(kind.__pydantic_core_schema__, {"ser_json_inf_nan": "constants"})

    def by_pydantic(model: Any) -> dict[str, Any]:
        try:
            out: dict[str, Any] = pydantics.to_python(
                model, mode="json", by_alias=False, include=left_to_pydantic, warnings="none"
            )
        except PydanticSerializationError as error:
            cause = error.__cause__
            said = type(cause or error).__name__
        else:
            return out
        raise Refused(f"cannot be written: its own code raised {said}", cause)

    def write_fields(model: Any, depth: int) -> dict[str, Any]:
        if depth >= MAX_DEPTH:
            raise Refused(TOO_DEEP)
        depth += 1
        out: dict[str, Any] = {}
        name = ""
        try:
            written = by_pydantic(model) if left_to_pydantic else {}
            for field in fields:
                name = field.name
                item = written.get(name, _MISSING) if field.by_pydantic else asked(_value, model, name)
                if item is _MISSING or (field.skip is not None and asked(field.skip, item)):
                    continue
                if field.function is not None:
                    item = _serialized(field.function, model, item, name, depth)
                out[field.key] = write(item, depth)
        except Refused as refused:
            if name:
                refused.path.append(name)
            raise
        extra = getattr(model, "__pydantic_extra__", None)
        return out | write(extra, depth - 1) if extra else out

    return write_fields


def _by_model_serializer(function: Mapping[str, Any], write_fields: Writer) -> Writer:
    """The writer for a class with a `model_serializer`. If the serializer is a wrap serializer, its handler writes the
    fields by the rule of `jsonable`."""

    def write_model(model: Any, depth: int) -> Any:
        arguments: list[Any] = [model]
        if function["type"] == "function-wrap":
            arguments.append(lambda inner, _index=None: write_fields(inner, depth))
        if function.get("info_arg"):
            arguments.append(_Info())
        return write(asked(function["function"], *arguments), depth + 1)

    return write_model


def _serialized(function: Mapping[str, Any], model: Any, item: Any, name: str, depth: int) -> Any:
    """The result of a field's serializer for the field's value."""
    if item is None and function.get("when_used") in ("unless-none", "json-unless-none"):
        return None
    arguments = [model, item] if function.get("is_field_serializer") else [item]
    if function["type"] == "function-wrap":
        arguments.append(lambda inner, _index=None: write(inner, depth))
    if function.get("info_arg"):
        arguments.append(_Info(name))
    return asked(function["function"], *arguments)


def _value(model: Any, name: str) -> Any:
    """A field's value. `_MISSING`: the object was made without validation, and has no such field. Reading a computed
    field runs code of the application."""
    try:
        return getattr(model, name)
    except AttributeError:
        if name in getattr(model, "__pydantic_computed_fields__", ()):
            raise
        return _MISSING
