"""`lifespan`: the broker of an ASGI application."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from cqrs_brokers import Broker, BrokerStateError, ConnectError, Message, UnreachableError, lifespan
from tests.core.drivers import Scripted


def unreachable() -> Scripted:
    driver = Scripted(automatic=True)
    driver.connect_errors = [UnreachableError("nobody answers")]
    return driver


def application(made: list[Broker], **options: bool) -> FastAPI:
    def make() -> Broker:
        made.append(Broker(Scripted(automatic=True)))
        return made[-1]

    app = FastAPI(lifespan=lifespan(make, **options))

    @app.post("/")
    async def send(request: Request) -> dict[str, object]:
        receipt = await request.state.broker.send_message(Message("A", "orders", {}))
        return dict(receipt.to_dict())

    return app


def test_an_application_starts_twice_with_a_function() -> None:
    """Each start makes a broker; each shutdown closes it."""
    made: list[Broker] = []
    app = application(made)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.post("/").json()["confirmed"] is True
    assert [broker.describe()["state"] for broker in made] == ["closed", "closed"]


def test_a_broker_that_is_down_stops_the_start_and_is_closed() -> None:
    """The reason is the driver's ConnectError."""
    down = Broker(unreachable())
    with pytest.raises(ConnectError, match="nobody answers"), TestClient(FastAPI(lifespan=lifespan(down))):
        pass
    assert down.describe()["state"] == "closed"


def test_an_application_starts_although_the_broker_is_down() -> None:
    """With connect=False the first send or health() connects."""
    down = Broker(unreachable())
    app = FastAPI(lifespan=lifespan(down, connect=False))

    @app.get("/ready")
    async def ready(request: Request) -> bool:
        return (await request.state.broker.health()).ok

    with TestClient(app) as client:
        assert client.get("/ready").json() is False
        assert client.get("/ready").json() is True


async def test_a_broker_object_cannot_be_started_twice() -> None:
    """The error says that the broker is closed."""
    broker = Broker(Scripted(automatic=True))
    start = lifespan(broker)

    async def once() -> AsyncIterator[None]:
        async with start(None):
            yield

    async for _ in once():
        pass
    with pytest.raises(BrokerStateError, match="closed"):
        async with start(None):
            pass


async def not_a_function() -> Broker:
    return Broker(Scripted(automatic=True))


@pytest.mark.parametrize("wrong", [not_a_function, None, "memory://x"])
def test_what_makes_no_broker_is_refused_at_once(wrong: Any) -> None:
    """The error says what to write."""
    with pytest.raises(TypeError, match="write lifespan"):
        lifespan(wrong)


@pytest.mark.parametrize("wrong", [lambda: None, lambda: not_a_function()])
async def test_a_function_that_makes_no_broker_stops_the_start(wrong: Any) -> None:
    """The error says what to write, and no coroutine is left."""
    with pytest.raises(TypeError, match=r"must return a Broker, not a .*write lifespan"):
        async with lifespan(wrong)(None):
            pass
