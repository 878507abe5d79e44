"""An address that drops every connection attempt, as a host does that is gone: for the tests of core and of drivers."""

import contextlib
import socket
from collections.abc import Iterator

DEAD = "127.0.0.7"


@contextlib.contextmanager
def dead_address(port: int) -> Iterator[None]:
    """Makes DEAD:port drop every connection attempt: its queue is full and nobody accepts."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((DEAD, port))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((DEAD, port))
        yield
