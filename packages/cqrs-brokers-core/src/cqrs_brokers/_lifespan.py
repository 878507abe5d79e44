"""The lifespan of a FastAPI, Starlette or other ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from ._broker import Broker

__all__ = ["lifespan"]


def lifespan(
    broker: Broker | Callable[[], Broker], /, *, connect: bool = True
) -> Callable[[object], AbstractAsyncContextManager[dict[str, Broker]]]:
    """Connects at start-up; flushes and closes at shutdown.

        app = FastAPI(lifespan=lifespan(lambda: open_broker("kafka://localhost:9092")))

        @app.post("/orders")
        async def place_order(request: Request) -> None:
            await request.state.broker.send_message(…)

    Args:
        broker: A broker, or a function that makes one at each start. Take a function where the application starts more
            than once in a process, as in tests: a closed broker cannot be opened again.
        connect: True: a broker that cannot be reached stops the start-up with its `ConnectError`. False: the
            application starts all the same, and the first `health()` or send connects.

    Returns:
        What frameworks take as `lifespan=`. The broker is in the application's state as `broker`.
    """

    @asynccontextmanager
    async def connected(_application: object) -> AsyncIterator[dict[str, Broker]]:
        opened = broker if isinstance(broker, Broker) else broker()
        try:
            if connect:
                await opened.connect()
            yield {"broker": opened}
        finally:
            await opened.close()

    return connected
