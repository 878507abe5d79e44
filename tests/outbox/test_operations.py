"""What a person does: migrations, status, parked rows, the number of partitions, the command line, permissions."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command as alembic
from alembic.config import Config
from sqlalchemy import inspect, text, update
from sqlalchemy.ext.asyncio import create_async_engine

from cqrs_brokers import DeliveryError, DestinationNotFoundError, InvalidMessageError, Message
from cqrs_brokers_outbox import Outbox, OutboxAdmin, OutboxError, OutboxSchemaError, Relay, State
from cqrs_brokers_outbox.command import main

from .brokers import ScriptedBroker, opened
from .conftest import Database
from .test_relay import all_in, numbered, relay, rows, store, until

pytestmark = pytest.mark.live


def refusing(*names: str) -> ScriptedBroker:
    def script(message: Message, times: int) -> DeliveryError | None:
        return InvalidMessageError("too odd") if message.message_name in names and times == 0 else None

    return ScriptedBroker(script)


async def test_parked_rows_are_listed_released_and_discarded(database: Database) -> None:
    """With the reason and what waits behind; a released key goes on in order, beside a running relay."""
    await store(database, *[numbered(n, key) for n in range(3) for key in "ab"])
    driver = refusing("t/a/0", "t/b/0")

    async def stopped() -> bool:
        return [row.state for row in await rows(database)] == [2, 2, 3, 3, 3, 3]

    async with relay(database, driver), OutboxAdmin(database.main, database.outbox) as admin:
        await until(stopped)
        first, second = await admin.parked()
        assert (first.topic, first.error_class, first.error_text, first.behind) == (
            "t",
            "InvalidMessageError",
            "too odd",
            2,
        )
        status = await admin.status()
        assert (status.parked, status.waiting, status.unsent) == (2, 4, 6)
        assert sum(lag.rows for lag in status.lag) == 6
        assert await admin.release(first.position) == 1
        assert await admin.release(first.position) == 0
        await until(lambda: driver.names == ["t/a/0", "t/a/1", "t/a/2"])
        assert await admin.discard() == 0
        assert await admin.discard(second.position) == 1
        await until(lambda: driver.names[3:] == ["t/b/1", "t/b/2"])
        await until(all_in(State.SENT, database))
        assert len(await rows(database)) == 5
        assert await admin.purge() == 5
        assert await rows(database) == []


async def test_the_number_of_partitions_changes_under_running_relays(database: Database) -> None:
    """They let go of all, work on with the new number, and nothing is lost, repeated or overtaken."""
    if database.kind == "aiosqlite":
        pytest.skip("its one partition is one relay's")
    driver = ScriptedBroker(lambda message, times: 0.001)
    async with relay(database, driver, batch=10), relay(database, driver, batch=10):
        await store(database, *[numbered(n, f"k{n % 20}") for n in range(200)])
        async with OutboxAdmin(database.engine(), database.outbox) as admin:
            await admin.partitions(5, timeout=30)
            await store(database, *[numbered(n, f"k{n % 20}") for n in range(200, 300)])
            assert len((await admin.status()).leases) == 5
            await until(all_in(State.SENT, database))
    assert len(driver.names) == 300
    for key in range(20):
        mine = [int(name.rpartition("/")[2]) for name in driver.names if f"/k{key}/" in name]
        assert mine == sorted(mine)


async def test_partitions_that_are_not_given_back_in_time(postgresql_database: Database) -> None:
    """The error says what to do, and nothing is changed."""
    driver = ScriptedBroker()
    driver.gate.clear()
    await store(postgresql_database, numbered(1))
    async with relay(postgresql_database, driver):
        await until(lambda: driver.tried)
        async with OutboxAdmin(postgresql_database.engine(), postgresql_database.outbox) as admin:
            with pytest.raises(OutboxError, match="did not give back"):
                await admin.partitions(5, timeout=1)
            assert len((await admin.status()).leases) == 16
            with pytest.raises(OutboxError, match="1 to 1024"):
                await admin.partitions(0)
            for timeout in (0.0, -1.0, float("nan")):
                with pytest.raises(OutboxError, match="above 0"):
                    await admin.partitions(5, timeout=timeout)
        driver.gate.set()


def alembic_config(url: str, folder: Path, table: str) -> Config:
    (folder / "env.py").write_text(
        "from alembic import context\n"
        "from sqlalchemy import create_engine\n"
        "engine = create_engine(context.config.get_main_option('sqlalchemy.url'))\n"
        "with engine.connect() as connection:\n"
        f"    context.configure(connection=connection, version_table='{table}_alembic')\n"
        "    with context.begin_transaction():\n"
        "        context.run_migrations()\n"
        "engine.dispose()\n"
    )
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("version_locations", "cqrs_brokers_outbox:migrations")
    config.set_main_option("path_separator", "space")
    config.set_main_option("sqlalchemy.url", url)
    config.set_main_option("cqrs_brokers_outbox.table", table)
    return config


async def test_the_migration_makes_what_the_library_uses(database: Database, tmp_path: Path) -> None:
    """The shipped migration and create_table() make the same tables; downgrade removes them."""
    if database.kind == "asyncpg":
        pytest.skip("alembic is synchronous: psycopg stands for PostgreSQL")
    import pymysql

    url = database.sync_url or database.url.replace("asyncmy", "pymysql")
    assert pymysql
    name = f"{database.outbox.tables.name}m"
    config = alembic_config(url, tmp_path, name)
    await asyncio.to_thread(alembic.upgrade, config, "cqrs_brokers_outbox@head")
    migrated = Outbox(name)

    def shape(connection: Any, table: str) -> Any:
        looked = inspect(connection)
        columns = [
            (each["name"], str(each["type"]), each["nullable"], bool(each.get("autoincrement")))
            for each in looked.get_columns(table)
        ]
        indexes = sorted(
            (tuple(each["column_names"]), sorted(str(v) for v in each.get("dialect_options", {}).values()))
            for each in looked.get_indexes(table)
        )
        return columns, indexes, looked.get_pk_constraint(table)["constrained_columns"]

    async with database.main.connect() as connection:
        for ours, theirs in zip(database.outbox.tables.all, migrated.tables.all, strict=True):
            assert await connection.run_sync(shape, ours.name) == await connection.run_sync(shape, theirs.name)
    async with OutboxAdmin(database.main, migrated) as admin:
        assert (await admin.status()).unsent == 0
    await asyncio.to_thread(alembic.downgrade, config, "cqrs_brokers_outbox@base")
    with pytest.raises(OutboxSchemaError):
        async with OutboxAdmin(database.main, migrated):
            pass


async def test_missing_rights_are_said_before_work_begins(postgresql_database: Database) -> None:
    """The error names the rights to grant."""
    database = postgresql_database
    tables = ", ".join(table.name for table in database.outbox.tables.all)
    user = f"reader_{database.outbox.tables.name}"
    async with database.main.begin() as connection:
        await connection.execute(text(f"CREATE ROLE {user} LOGIN"))
        await connection.execute(text(f"GRANT SELECT ON {tables} TO {user}"))
    engine = create_async_engine(database.url.replace("postgres@", f"{user}@"))
    async with opened(ScriptedBroker()) as broker:
        with pytest.raises(OutboxSchemaError, match=r"permission denied.*grant SELECT, INSERT, UPDATE and DELETE"):
            await Relay(engine, broker, database.outbox, lease=15.0).run()
    await engine.dispose()
    async with database.main.begin() as connection:
        await connection.execute(text(f"REVOKE ALL ON {tables} FROM {user}"))
        await connection.execute(text(f"DROP ROLE {user}"))


# -- the command line --------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    output = capsys.readouterr()
    return code, output.out, output.err


async def test_the_commands(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """status, parked, release and discard say what they did; status tells by its exit code that a person is needed."""
    await store(database, *[numbered(n, "a") for n in range(2)], numbered(0, "b"))
    async with relay(database, refusing("t/a/0", "t/b/0")):

        async def stopped() -> bool:
            return [row.state for row in await rows(database)] == [2, 3, 2]

        await until(stopped)
    where = ["--database", database.url, "--table", database.outbox.tables.name]
    first, _, last = [str(row.id) for row in await rows(database)]
    code, out, err = await asyncio.to_thread(run, capsys, "status", *where)
    assert (code, err) == (2, "")
    assert "unsent 3: ready 0, waiting 1, parked 2" in out
    assert "rows that are parked: 2; see `parked`" in out
    assert "no relay works on them" not in out  # none of them could be sent now
    assert "topic 't' partition" in out
    assert "nobody's" in out
    code, out, _ = await asyncio.to_thread(run, capsys, "parked", *where)
    assert code == 0
    assert f"{first} topic 't' message" in out
    assert "InvalidMessageError: too odd (1 behind it)" in out
    assert await asyncio.to_thread(run, capsys, "discard", *where, last) == (0, "discarded 1\n", "")
    assert await asyncio.to_thread(run, capsys, "release", *where) == (0, "released 1\n", "")
    code, out, _ = await asyncio.to_thread(run, capsys, "status", *where)
    assert (code, "no relay works on them: 2; start a relay" in out) == (2, True)
    async with relay(database, ScriptedBroker()):
        await until(all_in(State.SENT, database))
    assert (await asyncio.to_thread(run, capsys, "status", *where))[0] == 0
    assert await asyncio.to_thread(run, capsys, "partitions", *where, "3") == (0, "3 partitions\n", "")


async def test_numbers_that_are_no_parked_rows(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """release and discard say that there is no such parked row; the exit code is 1, also when others were found."""
    where = ["--database", database.url, "--table", database.outbox.tables.name]
    await store(database, numbered(0, "a"), numbered(0, "b"))
    async with relay(database, refusing("t/a/0")):

        async def stopped() -> bool:
            return [row.state for row in await rows(database)] == [State.PARKED, State.SENT]

        await until(stopped)
    parked, sent = [str(row.id) for row in await rows(database)]
    for command, done in (("release", "released"), ("discard", "discarded")):
        code, out, err = await asyncio.to_thread(run, capsys, command, *where, sent)
        assert (code, out) == (1, f"{done} 0\n")
        assert f"there is no parked row {sent}: " in err
    code, out, err = await asyncio.to_thread(run, capsys, "release", *where, parked, "999")
    assert (code, out) == (1, "released 1\n")
    assert f"1 of {parked}, 999 are no parked rows" in err
    assert await asyncio.to_thread(run, capsys, "release", *where) == (0, "released 0\n", "")


@pytest.mark.parametrize("position", [0, -1, 2**63, 10**19, "1", 1.0, True])
async def test_numbers_that_no_row_can_have(database: Database, position: Any) -> None:
    """release and discard refuse them and say what a number looks like; the largest possible one is that of no row."""
    async with OutboxAdmin(database.main, database.outbox) as admin:
        for call in (admin.release, admin.discard):
            with pytest.raises(OutboxError, match=r"is a whole number from 1 to 9223372036854775807, not "):
                await call(position)
            assert await call(2**63 - 1) == 0


async def test_purge_and_parked_refuse_what_has_no_meaning(database: Database) -> None:
    """purge with seconds below 0, parked without a limit of rows; rows that are kept for ever stay."""
    await store(database, numbered(0, "a"))
    async with relay(database, ScriptedBroker()), OutboxAdmin(database.main, database.outbox) as admin:
        await until(all_in(State.SENT, database))
        for keep in (-1, -0.001, float("nan"), float("-inf")):
            with pytest.raises(OutboxError, match="keep must be 0 or more seconds"):
                await admin.purge(keep)
        for limit in (0, -1, 2**63):
            with pytest.raises(OutboxError, match="the limit must be a whole number from 1 to"):
                await admin.parked(limit)
        assert await admin.purge(float("inf")) == await admin.purge(1e30) == 0
        assert await admin.purge(0) == 1


async def test_the_commands_refuse_such_numbers_in_a_line(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without SQL, with the exit code 1."""
    where = ["--database", database.url, "--table", database.outbox.tables.name]
    for command in (("discard", "10000000000000000000"), ("release", "0"), ("parked", "--limit", "-1")):
        code, out, err = await asyncio.to_thread(run, capsys, command[0], *where, *command[1:])
        assert (code, out) == (1, "")
        assert "must be a whole number from 1 to" in err or "is a whole number from 1 to" in err
        assert err.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
async def test_output_that_cannot_be_printed_goes_to_stderr(database: Database, tmp_path: Path) -> None:
    """What the command did stays done, so its exit code stays too."""
    where = ["--database", database.url, "--table", database.outbox.tables.name]
    command = [sys.executable, "-m", "cqrs_brokers_outbox", "release", *where]
    for arguments in ('"$@" >/dev/full', '"$@" >&-'):
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", arguments, "bash", *command, stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert process.returncode == 0
        assert err.decode().startswith("stdout cannot be written to (")
        assert err.decode().endswith("this is the output:\nreleased 0\n")


async def test_one_json_document(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command but relay prints one with --json, with the same exit code."""
    where = ["--json", "--database", database.url, "--table", database.outbox.tables.name]
    await store(database, numbered(0, "a"), numbered(0, "b", "gone"))

    def script(message: Message, times: int) -> DeliveryError | None:
        return DestinationNotFoundError("no such topic") if message.topic == "gone" else InvalidMessageError("no")

    async with relay(database, ScriptedBroker(script)):

        async def stopped() -> bool:
            return [row.state for row in await rows(database)] == [State.PARKED, State.REFUSED]

        await until(stopped)
    position = (await rows(database))[0].id

    async def said(*arguments: str) -> tuple[int, Any]:
        code, out, err = await asyncio.to_thread(run, capsys, *arguments, *where)
        assert err == ""
        return code, json.loads(out)

    code, status = await said("status")
    assert code == 2
    assert {name: status[name] for name in ("unsent", "parked", "refused_topics")} == {
        "unsent": 2,
        "parked": 1,
        "refused_topics": ["gone"],
    }
    assert {lag["topic"]: (lag["parked"], lag["refused"]) for lag in status["lag"]} == {"t": (1, 0), "gone": (0, 1)}
    code, (row,) = await said("parked")
    assert (code, row["position"], row["error_class"]) == (0, position, "InvalidMessageError")
    assert await said("discard", str(position)) == (0, {"discarded": 1})
    assert await said("release") == (0, {"released": 0})
    assert await said("partitions", "2") == (0, {"partitions": 2})


async def test_rows_that_no_relay_works_on(postgresql_database: Database) -> None:
    """By topic and partition: those of a living relay are not among them, nor those that wait for their time."""
    database = postgresql_database
    async with OutboxAdmin(database.main, database.outbox) as admin:

        async def unattended() -> int:
            return (await admin.status()).unattended

        await store(database, *[numbered(n, f"k{n}", topic) for n in range(20) for topic in ("a", "b")])
        assert await unattended() == 40  # no relay was ever there
        driver = ScriptedBroker()
        driver.gate.clear()
        async with relay(database, driver, topics=["a"]):
            await until(lambda: driver.tried)
            assert await unattended() == 20  # those of b
            lease = database.outbox.tables.lease
            async with database.main.begin() as connection:
                await connection.execute(update(lease).where(lease.c.number == 0).values(until=0))
                mine = [row for row in await rows(database) if row.topic == "a" and row.hash % 16 == 0]
                late = update(database.outbox.tables.messages).where(database.outbox.tables.messages.c.topic == "b")
                await connection.execute(late.values(state=State.WAITING, not_before=text("9999999999999999")))
            assert await unattended() in (len(mine), 0)  # 0: the relay has renewed it
            driver.gate.set()
            await until(lambda: _count(database, State.SENT, 20))


async def _count(database: Database, state: State, count: int) -> bool:
    return sum(row.state == state for row in await rows(database)) == count


async def test_the_numbers_of_a_status_belong_together(database: Database) -> None:
    """While rows come and go, the states, the lag and the sum of one answer are of one time."""

    async def churn() -> None:
        n = 0
        while True:
            n += 1
            await store(database, *[numbered(m, f"k{n}-{m}") for m in range(20)])
            async with database.main.begin() as connection:
                await connection.execute(text(f"DELETE FROM {database.outbox.tables.name}"))

    async with OutboxAdmin(database.engine(), database.outbox) as admin:  # SQLite: the file is in WAL mode from now on
        churning = asyncio.create_task(churn())
        try:
            looks, seen = 0, set()
            async with asyncio.timeout(30):
                while looks < 100 or len(seen) < 2:  # how many a round of the rows takes is for the machine to say
                    status = await admin.status()
                    assert sum(lag.rows for lag in status.lag) == status.unsent == status.ready == status.unattended
                    looks += 1
                    seen.add(status.unsent)
                    if len(seen) > 1:
                        await asyncio.sleep(0.005)
            assert seen == {0, 20}
        finally:
            churning.cancel()
            await asyncio.wait([churning])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "CQRS_OUTBOX_DATABASE"),
        (["status", "--database", "nonsense"], "must look like"),
        (["status", "--database", "sqlite+aiosqlite:///{folder}/none.db"], "alembic upgrade"),
        (["status", "--database", "sqlite+aiosqlite:///{folder}/none.db"], "there is no database file"),
        (["status", "--database", "postgresql+asyncpg://me:hunter2@127.0.0.1:1/x"], "cannot be used"),
        (["status", "--database", "postgresql+psycopg://me:hunter2@127.0.0.1:1/x"], "Check that its server runs"),
        (["status", "--database", "mysql+asyncmy://me:hunter2@127.0.0.1:1/x"], "Check that its server runs"),
        (["relay", "--database", "sqlite+aiosqlite:///{folder}/none.db"], "CQRS_BROKER_URL"),
        (["status", "--database", "postgresql+nodriver://h/x"], "must look like"),
        (["status", "--database", "postgresql+asyncpg://me:hunter2/x"], "must look like"),
        (["status", "--database", "sqlite:///x"], "an asynchronous driver"),
        (["status", "--database", "postgresql+asyncpg://me@127.0.0.1:1/x?hunter2=1"], "look at what is behind it"),
        (["status", "--database", "postgresql+psycopg://me:my@hunter2@127.0.0.1:1/x"], "as %40"),
        (["status", "--database", "mysql+asyncmy://me:my@hunter2@127.0.0.1:1/x"], "as %40"),
        (["status", "--database", "mysql+asyncmy://me:my@127.0.0.1/hunter2@127.0.0.1:1/x"], "as %40"),
        (["status", "--database", "oracle+oracledb_async://me:hunter2@h/x"], "is not installed"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No traceback, no password; the exit code is 1."""
    monkeypatch.delenv("CQRS_OUTBOX_DATABASE", raising=False)
    monkeypatch.delenv("CQRS_BROKER_URL", raising=False)
    code, _, err = run(capsys, *[argument.format(folder=tmp_path) for argument in arguments])
    assert code == 1
    assert said in err
    assert ("migration" in err) == ("none.db" in str(arguments) and arguments[0] == "status")
    assert not (tmp_path / "none.db").exists()
    assert "hunter2" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--databse", "postgresql+asyncpg://me:hunter2@h/x"],
        ["status", "--databse=postgresql+asyncpg://me:hunter2@h/x"],
        ["postgresql+asyncpg://me:hunter2@h/x"],
        ["release", "--database", "postgresql+asyncpg://me:pass", "hunter2", "word@h/x"],
    ],
)
def test_a_mistyped_command_line_shows_no_password(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It says which option is wrong, and quotes no value."""
    with pytest.raises(SystemExit):
        run(capsys, *arguments)
    said = capsys.readouterr().err
    assert "error: " in said
    assert "hunter2" not in said
    assert "me:" not in said


async def test_a_relay_of_its_own_process(postgresql_database: Database, rabbitmq: Any, unique_name: Any) -> None:
    """`relay` sends to the broker of the environment; SIGTERM ends it in order, with its leases given back."""
    from cqrs_brokers_testkit.readers import bind_queue, drain_queue

    database = postgresql_database
    exchange = unique_name("outbox")
    queue = bind_queue(rabbitmq.url, exchange, "orders")
    await store(database, *[numbered(n, f"k{n % 3}", "orders") for n in range(30)])
    broker = f"{rabbitmq.url}?exchange={exchange}&delivery_timeout=5s"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "cqrs_brokers_outbox", "relay"),
        *("--table", database.outbox.tables.name, "--lease", "15", "--batch", "7"),
        env={**os.environ, "CQRS_OUTBOX_DATABASE": database.url, "CQRS_BROKER_URL": broker},
        stderr=asyncio.subprocess.PIPE,
    )
    await until(all_in(State.SENT, database))
    process.send_signal(signal.SIGTERM)
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, err.decode()
    records = await asyncio.to_thread(drain_queue, rabbitmq.url, queue, 30)
    for key in range(3):
        mine = [record for record in records if record.key == f"k{key}"]
        assert [record.name for record in mine] == [f"orders/k{key}/{n}" for n in range(key, 30, 3)]
    async with OutboxAdmin(database.main, database.outbox) as admin:
        assert {lease.owner for lease in (await admin.status()).leases} == {None}


async def test_a_row_of_another_version_of_the_table(postgresql_database: Database) -> None:
    """The administration refuses it too."""
    version = postgresql_database.outbox.tables.version
    async with postgresql_database.main.begin() as connection:
        await connection.execute(update(version).values(version=2))
    with pytest.raises(OutboxSchemaError, match="version 2"):
        async with OutboxAdmin(postgresql_database.main, postgresql_database.outbox):
            pass
