"""The inbox: a message's work is done once, in the consumer's own transaction."""

import asyncio
import uuid

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from cqrs_brokers_outbox import Inbox, OutboxError, OutboxSessionError

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


@pytest.mark.parametrize(
    "others", [("id", "ID"), ("id", "id "), ("e", "é"), ("😀", "😁")], ids=["case", "space", "accent", "emoji"]
)
async def test_texts_that_differ_are_different_messages(
    database: Database, inbox: Inbox, others: tuple[str, str]
) -> None:
    """Collations that take them for equal would make a message count as handled that is new."""
    seen = []
    for consumer, message_id in [("billing", others[0]), ("billing", others[1]), (others[0], "1"), (others[1], "1")]:
        async with AsyncSession(database.main) as session, session.begin():
            async with inbox.once(session, consumer, message_id) as fresh:
                seen.append(fresh)
    assert seen == [True] * 4


@pytest.mark.parametrize(("consumer", "message_id"), [("b", "x" * 37), ("x" * 101, "1"), ("", "1"), ("b", "")])
async def test_texts_that_do_not_fit_are_refused(
    database: Database, inbox: Inbox, consumer: str, message_id: str
) -> None:
    """MariaDB would cut them: messages whose ids begin alike would be one."""
    async with AsyncSession(database.main) as session, session.begin():
        with pytest.raises(OutboxError, match="must have 1 to"):
            async with inbox.once(session, consumer, message_id):
                raise AssertionError


async def test_a_session_in_autocommit_is_refused(database: Database, inbox: Inbox) -> None:
    """The message would count as handled although its work failed."""
    engine = database.engine(isolation_level="AUTOCOMMIT")
    async with AsyncSession(engine) as session, session.begin():
        with pytest.raises(OutboxSessionError, match="without its work"):
            async with inbox.once(session, "billing", "1"):
                raise AssertionError
    async with AsyncSession(database.main) as session, session.begin():
        async with inbox.once(session, "billing", "1") as fresh:
            assert fresh


async def test_a_purge_of_everything_or_nothing(database: Database, inbox: Inbox) -> None:
    """An age for which there is no time is refused; one longer than any keeps everything."""
    async with AsyncSession(database.main) as session, session.begin():
        async with inbox.once(session, "billing", "1"):
            pass
        for wrong in (-1.0, float("nan")):
            with pytest.raises(OutboxError, match="older_than must be 0 or more"):
                await inbox.purge(session, wrong)
        await inbox.purge(session, float("inf"))
        async with inbox.once(session, "billing", "1") as fresh:
            assert not fresh
