"""The inbox: a message's work is done once, in the consumer's own transaction."""

import asyncio
import uuid

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from cqrs_brokers_outbox import Inbox

from .conftest import Database

pytestmark = pytest.mark.live


@pytest.fixture
async def inbox(database: Database) -> Inbox:
    made = Inbox(f"{database.outbox.tables.name}_inbox")
    await made.create_table(database.main)
    return made


async def test_once_for_each_consumer(database: Database, inbox: Inbox) -> None:
    """The second time is not fresh; another consumer's first time is."""
    message_id = uuid.uuid4()
    seen = []
    for consumer in ("billing", "billing", "shipping", "billing"):
        async with AsyncSession(database.main) as session, session.begin():
            async with inbox.once(session, consumer, message_id) as fresh:
                seen.append((consumer, fresh))
    assert seen == [("billing", True), ("billing", False), ("shipping", True), ("billing", False)]


async def test_work_that_fails_is_done_again(database: Database, inbox: Inbox) -> None:
    """The memory is rolled back with the work; work within goes on after a repeat."""
    message_id = uuid.uuid4()

    async def handle(fail: bool) -> bool:
        async with AsyncSession(database.main) as session, session.begin():
            async with inbox.once(session, "billing", message_id) as fresh:
                await session.execute(text("SELECT 1"))
                if fail:
                    raise RuntimeError
                return fresh

    with pytest.raises(RuntimeError):
        await handle(True)
    assert await handle(False) is True
    assert await handle(False) is False


async def test_two_consumers_at_once(database: Database, inbox: Inbox) -> None:
    """The second waits until the first has committed, and is not fresh."""
    if database.kind == "aiosqlite":
        pytest.skip("one writer at a time")
    message_id = uuid.uuid4()
    entered = asyncio.Event()
    fresh_ones = []

    async def first() -> None:
        async with AsyncSession(database.main) as session, session.begin():
            async with inbox.once(session, "billing", message_id) as fresh:
                fresh_ones.append(fresh)
                entered.set()
                await asyncio.sleep(0.2)

    async def second() -> None:
        await entered.wait()
        async with AsyncSession(database.main) as session, session.begin():
            async with inbox.once(session, "billing", message_id) as fresh:
                fresh_ones.append(fresh)

    await asyncio.gather(first(), second())
    assert fresh_ones == [True, False]


async def test_purge(database: Database, inbox: Inbox) -> None:
    """What was handled long ago is forgotten."""
    message_id = uuid.uuid4()
    for older_than, expected in ((60.0, [True, False]), (0.0, [False, True])):
        seen = []
        for _ in range(2):
            async with AsyncSession(database.main) as session, session.begin():
                async with inbox.once(session, "billing", message_id) as fresh:
                    seen.append(fresh)
            async with AsyncSession(database.main) as session, session.begin():
                await inbox.purge(session, older_than)
        assert seen == expected
