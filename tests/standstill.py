"""A process that stands still, as a laptop that sleeps or a frozen function: for the tests of drivers."""

import asyncio
import time


def stand_still_after(turns: int, seconds: float = 1.5) -> None:
    """Blocks the running event loop for these seconds, after this many turns."""
    loop = asyncio.get_running_loop()
    if turns:
        loop.call_soon(stand_still_after, turns - 1, seconds)
    else:
        loop.call_soon(time.sleep, seconds)
