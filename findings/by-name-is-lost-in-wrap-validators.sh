#!/usr/bin/env bash
# pydantic 2.13.4 (pydantic-core 2.46.4) and 2.14.4, Python 3.11.
#
# `model_validate(..., by_alias=True, by_name=True)` reaches the models inside a model, but not through a field that has a
# wrap validator, although that validator hands the value on unchanged. One would expect both to accept the same input.
# pydantic 2.14.4 accepts both.
#
# Output seen:
#   2.13.4 plain field: accepted
#   2.13.4 field with a wrap validator: refused, ('items', 0, 'A') missing
#   2.14.4 plain field: accepted
#   2.14.4 field with a wrap validator: accepted
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/shows.py" <<'PYTHON'
import sys

import pydantic


class Item(pydantic.BaseModel):
    a: int = pydantic.Field(alias="A")


class Plain(pydantic.BaseModel):
    items: list[Item]


class Wrapped(pydantic.BaseModel):
    items: list[Item]

    @pydantic.field_validator("items", mode="wrap")
    @classmethod
    def same(cls, value, handler):
        return handler(value)


def says(model):
    try:
        model.model_validate({"items": [{"a": 1}]}, by_alias=True, by_name=True)
    except pydantic.ValidationError as error:
        (problem,) = error.errors()
        return f"refused, {problem['loc']} {problem['type']}"
    return "accepted"


plain, wrapped = says(Plain), says(Wrapped)
print(pydantic.VERSION, "plain field:", plain)
print(pydantic.VERSION, "field with a wrap validator:", wrapped)
expected = ("accepted", "accepted") if sys.argv[1] == "fixed" else ("accepted", "refused, ('items', 0, 'A') missing")
sys.exit((plain, wrapped) != expected)
PYTHON
for pair in 2.13.4:lost 2.14.4:fixed; do
    python3 -m venv "$folder/${pair%%:*}"
    "$folder/${pair%%:*}/bin/pip" install -q "pydantic==${pair%%:*}"
    "$folder/${pair%%:*}/bin/python" "$folder/shows.py" "${pair##*:}"
done
