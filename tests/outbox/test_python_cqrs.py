"""python-cqrs' mediator and handlers with our repository: a command changes the database and tells it, or neither."""

from typing import Any

import cqrs
import di
import pydantic
import pytest
from cqrs.bootstrap import requests
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from cqrs_brokers_outbox import State
from cqrs_brokers_outbox.python_cqrs import OutboxRepository
from cqrs_brokers_python_cqrs import ECSTEvent

from .brokers import ScriptedBroker
from .conftest import Database
from .test_relay import all_in, relay, rows, until

pytestmark = pytest.mark.live


class OrderPlaced(ECSTEvent[dict[str, Any]]):
    topic: str = "orders"

    def ordering_key(self) -> str | None:
        return str(self.payload["id"])


class Place(cqrs.Request):
    order: int
    fail: bool = False


class Placed(cqrs.Response):
    order: int


class Order(pydantic.BaseModel):
    order: int


async def test_a_handler_and_its_event(database: Database) -> None:
    """What the handler commits is told in order; what it rolls back is not."""
    outbox, orders = database.outbox, database.orders

    class Handler(cqrs.RequestHandler[Place, Placed]):
        def __init__(self, repository: cqrs.OutboxedEventRepository) -> None:
            self.repository: Any = repository

        @property
        def events(self) -> list[cqrs.IEvent]:
            return []

        async def handle(self, request: Place) -> Placed:
            await self.repository.session.execute(insert(orders).values(id=request.order, state="placed"))
            self.repository.add(OrderPlaced(payload={"id": request.order}))
            self.repository.add(
                cqrs.PydanticNotificationEvent[Order](event_name="own", topic="own", payload=Order(order=request.order))
            )
            if request.fail:
                await self.repository.rollback()
                raise RuntimeError("no")
            await self.repository.commit()
            return Placed(order=request.order)

    async with AsyncSession(database.main) as session:
        repository = OutboxRepository(session, outbox, ordering_key=lambda event: f"own-{event.payload.order}")
        container = di.Container()
        container.bind(
            di.bind_by_type(di.dependent.Dependent(lambda: repository, scope="request"), cqrs.OutboxedEventRepository)
        )
        mediator = requests.bootstrap(
            di_container=container, commands_mapper=lambda mapper: mapper.bind(Place, Handler)
        )
        await mediator.send(Place(order=1))
        with pytest.raises(RuntimeError):
            await mediator.send(Place(order=2, fail=True))
        await mediator.send(Place(order=3))
    driver = ScriptedBroker()
    async with relay(database, driver):
        await until(all_in(State.SENT, database))
    assert sorted((m.message_name, m.topic, m.key or "") for m in driver.arrived) == [
        ("OrderPlaced", "orders", "1"),
        ("OrderPlaced", "orders", "3"),
        ("own", "own", "own-1"),
        ("own", "own", "own-3"),
    ]
    async with database.main.connect() as connection:
        assert (await connection.execute(select(orders.c.id).order_by(orders.c.id))).scalars().all() == [1, 3]
    assert len(await rows(database)) == 4


async def test_python_cqrs_own_producer_is_told_to_use_a_relay(database: Database) -> None:
    """get_many and update_status say what to run."""
    async with AsyncSession(database.main) as session:
        repository = OutboxRepository(session, database.outbox)
        with pytest.raises(NotImplementedError, match="run a Relay"):
            await repository.get_many()
        with pytest.raises(NotImplementedError, match="run a Relay"):
            await repository.update_status(1, cqrs.outbox.repository.EventStatus.PRODUCED)
