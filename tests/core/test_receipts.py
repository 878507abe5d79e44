"""What a receipt says, and in which forms."""

import json
from uuid import UUID

import httpx
from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter

from cqrs_brokers import Receipt

WHOLE = Receipt(UUID(int=1), "orders", "kafka", True, 3, 42)
FIELDS = {
    "message_id": "00000000-0000-0000-0000-000000000001",
    "topic": "orders",
    "broker": "kafka",
    "confirmed": True,
    "partition": 3,
    "offset": 42,
}


def test_str_shows_all_that_is_known() -> None:
    """An offset without a partition too, as of a stream that has none."""
    assert str(WHOLE).endswith("confirmed partition=3 offset=42>")
    assert str(Receipt(UUID(int=1), "orders", "nats", True, None, 42)).endswith("confirmed offset=42>")
    assert str(Receipt(UUID(int=1), "orders", "amqp", False)).endswith("not confirmed>")


def test_a_receipt_is_written_as_json() -> None:
    """By to_dict(), by dict(), by pydantic alone and in a model; read back by pydantic."""

    class Answer(BaseModel):
        receipt: Receipt

    assert WHOLE.to_dict() == dict(WHOLE) == FIELDS
    adapter = TypeAdapter(Receipt)
    assert json.loads(adapter.dump_json(WHOLE)) == FIELDS
    assert adapter.validate_json(adapter.dump_json(WHOLE)) == adapter.validate_python(FIELDS) == WHOLE
    assert json.loads(Answer(receipt=WHOLE).model_dump_json()) == {"receipt": FIELDS}


async def test_fastapi_answers_with_receipts() -> None:
    """As the declared type of the answer, and anywhere inside one."""
    app = FastAPI()

    @app.get("/declared")
    async def declared() -> Receipt:
        return WHOLE

    @app.get("/inside", response_model=None)
    async def inside() -> object:
        return {"receipts": [WHOLE]}

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/declared")).json() == FIELDS
        assert (await client.get("/inside")).json() == {"receipts": [FIELDS]}
        described = (await client.get("/openapi.json")).json()["paths"]["/declared"]["get"]["responses"]["200"]
    assert set(described["content"]["application/json"]["schema"]["properties"]) == set(FIELDS)
