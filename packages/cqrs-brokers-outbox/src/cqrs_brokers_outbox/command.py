"""The command line. The URLs may come from the environment, where no list of processes shows their passwords."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence

from sqlalchemy.exc import ArgumentError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cqrs_brokers import BrokerError, ConfigError, open_broker
from cqrs_brokers.arguments import ArgumentParser

from .admin import OutboxAdmin
from .outbox import Outbox
from .relay import Relay
from .status import OutboxStatus

__all__ = ["main"]

DATABASE = "CQRS_OUTBOX_DATABASE"


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m cqrs_brokers_outbox") -> int:
    """Runs a command.

    Args:
        arguments: The command line, without the program's name. Default: that of the process.
        program: The program's name.

    Returns:
        The exit code: 0, or 1 when it failed; `status` returns 2 when something needs a person.
    """
    options = _parser(program).parse_args(arguments)
    database = options.database or os.environ.get(DATABASE)
    if not database:
        print(f"no database: pass --database URL, or set {DATABASE}", file=sys.stderr)
        return 1
    try:
        return asyncio.run(_run(options, database))
    except (BrokerError, SQLAlchemyError, OSError) as error:
        print(_text(error), file=sys.stderr)
    except Exception as error:  # its text may quote a piece of the database's URL, so only its place is shown
        print("".join(traceback.format_tb(error.__traceback__)), end="", file=sys.stderr)
        text = "if its place is in the database's driver, look at what the URL has after its question mark"
        print(f"an unexpected {type(error).__name__}: {text}", file=sys.stderr)
    return 1


def _text(error: Exception) -> str:
    if isinstance(error, BrokerError):
        return str(error)
    cause = getattr(error, "orig", None) or error
    return f"the database cannot be used: {type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"


def _engine(database: str) -> AsyncEngine:
    """The engine of a database's URL.

    Raises:
        ConfigError: There is none; quotes nothing of the URL, which may have its password anywhere.
    """
    example = "it must look like postgresql+asyncpg://user@host/database, with an asynchronous driver"
    try:
        return create_async_engine(database)
    except ImportError as error:
        text = f"the driver of the database's URL is not installed ({error.name}): {example}"
    except (ArgumentError, InvalidRequestError, ValueError, TypeError):
        text = f"the database's URL cannot be read: {example}"
    raise ConfigError(text)


async def _run(options: Namespace, database: str) -> int:
    engine = _engine(database)
    outbox = Outbox(options.table, schema=options.schema)
    try:
        command: Callable[[Namespace, AsyncEngine, Outbox], Awaitable[int]] = options.command
        return await command(options, engine, outbox)
    finally:
        await engine.dispose()


async def _relay(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    broker = open_broker(options.broker)
    relay = Relay(
        engine,
        broker,
        outbox,
        topics=options.topic,
        pipeline_keys=options.pipeline_keys,
        when_parked=options.when_parked,
        keep=options.keep,
        batch=options.batch,
        lease=options.lease,
    )
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(relay.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, relay.stop)
    try:
        await running
    finally:
        await broker.close()
    return 0


async def _status(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    async with OutboxAdmin(engine, outbox) as admin:
        status = await admin.status()
    for line in _status_lines(status):
        print(line)
    return 2 if status.parked or status.refused_topics else 0


def _status_lines(status: OutboxStatus) -> list[str]:
    lines = [
        f"unsent {status.unsent}: ready {status.ready}, waiting {status.waiting}, parked {status.parked}",
        f"possible duplicates {status.possible_duplicates}",
    ]
    lines += [f"refused topic {topic!r}" for topic in status.refused_topics]
    lines += [
        f"topic {lag.topic!r} partition {lag.partition}: {lag.rows} rows, oldest {lag.oldest:.1f} s"
        for lag in status.lag
    ]
    lines += [
        f"partition {lease.partition} of {lease.scope}: "
        + (f"{lease.owner} for {lease.seconds:.0f} s" if lease.owner else "nobody's")
        for lease in status.leases
    ]
    return lines


async def _parked(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    async with OutboxAdmin(engine, outbox) as admin:
        for row in await admin.parked(options.limit):
            print(
                f"{row.position} topic {row.topic!r} message {row.message_id} {row.error_class}: {row.error_text} "
                f"({row.behind} behind it)"
            )
    return 0


async def _release(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    async with OutboxAdmin(engine, outbox) as admin:
        print(f"released {await admin.release(*options.position)}")
    return 0


async def _discard(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    async with OutboxAdmin(engine, outbox) as admin:
        print(f"discarded {await admin.discard(*options.position)}")
    return 0


async def _partitions(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    async with OutboxAdmin(engine, outbox) as admin:
        await admin.partitions(options.count, topics=options.topic, timeout=options.timeout)
    print(f"{options.count} partitions")
    return 0


def _parser(program: str) -> ArgumentParser:
    common = ArgumentParser(add_help=False)
    common.add_argument("--database", metavar="URL", help=f"SQLAlchemy's URL, asynchronous; default: ${DATABASE}")
    common.add_argument("--table", default="outbox", help="the outbox's table (default: outbox)")
    common.add_argument("--schema", help="its schema")
    parser = ArgumentParser(prog=program, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., Awaitable[int]], text: str) -> ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=text, description=text)
        made.set_defaults(command=run)
        return made

    relay = command("relay", _relay, "Send messages until SIGTERM.")
    relay.add_argument("--broker", metavar="URL", help="the broker's config string; default: $CQRS_BROKER_URL")
    relay.add_argument("--topic", action="append", help="only this topic; may be repeated")
    relay.add_argument("--pipeline-keys", action="store_true", help="send the rows of a key together")
    relay.add_argument("--when-parked", choices=["stop", "continue"], default="stop")
    relay.add_argument("--keep", type=float, default=24 * 3600.0, help="seconds for which sent rows are kept")
    relay.add_argument("--batch", type=int, default=500, help="rows of a claim, at most")
    relay.add_argument("--lease", type=float, help="seconds for which a partition is taken")
    command("status", _status, "Say what the outbox holds; the exit code is 2 when something needs a person.")
    parked = command("parked", _parked, "List the parked rows with their reasons.")
    parked.add_argument("--limit", type=int, default=100)
    release = command("release", _release, "Let parked rows be sent again; without numbers: all.")
    release.add_argument("position", type=int, nargs="*")
    discard = command("discard", _discard, "Delete parked rows; they are never sent.")
    discard.add_argument("position", type=int, nargs="+")
    partitions = command("partitions", _partitions, "Change the number of partitions.")
    partitions.add_argument("count", type=int)
    partitions.add_argument("--topic", action="append", help="a topic of the relays that share them; may be repeated")
    partitions.add_argument("--timeout", type=float, default=120.0)
    return parser
