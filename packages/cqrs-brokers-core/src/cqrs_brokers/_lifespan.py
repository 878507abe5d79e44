"""The lifespan of a FastAPI, Starlette or other ASGI application."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from ._broker import Broker

__all__ = ["lifespan"]

EXAMPLE = "write lifespan(lambda: open_broker(…)), or a function that returns what open_broker gives"


def lifespan(
    broker: Broker | Callable[[], Broker], /, *, connect: bool = True
) -> Callable[[object], AbstractAsyncContextManager[dict[str, Broker]]]:
    """Makes a lifespan that connects a broker at start-up, and flushes and closes the broker at shutdown.

        app = FastAPI(lifespan=lifespan(lambda: open_broker("kafka://localhost:9092")))

        @app.post("/orders")
        async def place_order(request: Request) -> None:
            await request.state.broker.send_message(…)

    Args:
        broker: A broker, or a function that makes a broker at each start. Pass a function if the application starts
            more than once in a process, as in tests, because a closed broker cannot be opened again.
        connect: Whether to connect at start-up. If True and the first attempt to connect fails, the start-up fails with
            a `ConnectError`. If False, the application starts without a connection, and the first `health()` or send
            connects.

    Returns:
        The value for a framework's `lifespan=`. In the application, `request.state.broker` is the broker.

    Raises:
        TypeError: The argument is an async function, or it is neither a broker nor a function. The start-up raises this
            error, too, if the function did not return a broker.
    """
    if not isinstance(broker, Broker) and (not callable(broker) or inspect.iscoroutinefunction(broker)):
        what = "an async function" if callable(broker) else f"a {type(broker).__name__}"
        raise TypeError(f"lifespan() takes a Broker or a function that is not async, not {what}: {EXAMPLE}")

    @asynccontextmanager
    async def connected(_application: object) -> AsyncIterator[dict[str, Broker]]:
        opened = broker if isinstance(broker, Broker) else _checked(broker())
        try:
            if connect:
                await opened.connect()
            yield {"broker": opened}
        finally:
            await opened.close()

    return connected


def _checked(made: object) -> Broker:
    if inspect.iscoroutine(made):
        made.close()
    if not isinstance(made, Broker):
        raise TypeError(f"the function of lifespan() must return a Broker, not a {type(made).__name__}: {EXAMPLE}")
    return made
