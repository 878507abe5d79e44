"""The command line. The URLs may come from the environment, so that no list of processes shows their passwords."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy.exc import ArgumentError, InterfaceError, InvalidRequestError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cqrs_brokers import BrokerError, ConfigError, open_broker
from cqrs_brokers.arguments import ArgumentParser

from ._relay.outcomes import printable
from .admin import OutboxAdmin
from .outbox import Outbox
from .relay import Relay
from .status import OutboxStatus

__all__ = ["main"]

DATABASE = "CQRS_OUTBOX_DATABASE"
INTERRUPTED = 130
LEAVING = 2.0
"""Seconds in which the connections are closed."""


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m cqrs_brokers_outbox") -> int:
    """Runs a command.

    Args:
        arguments: The command line, without the program's name. Default: that of the process.
        program: The program's name.

    Returns:
        The exit code: 0, or 1 when the command failed, or did not find all rows that it was given. `status` returns 2
        when somebody must look: rows are parked, a topic is refused, or rows could be sent and no relay works on them.
        130: interrupted; a relay that works ends with 0 then.

    Raises:
        SystemExit: The command line is wrong (2), or asks for help (0).
    """
    options = _parser(program).parse_args(arguments)
    database = options.database or os.environ.get(DATABASE)
    if not database:
        _say(f"no database: pass --database URL, or set {DATABASE}")
        return 1
    try:
        return asyncio.run(_run(options, database))
    except (BrokerError, SQLAlchemyError, OSError) as error:
        _say(_text(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # its text may quote a piece of the database's URL, so only its place is shown
        _say("".join(traceback.format_tb(error.__traceback__)).rstrip())
        text = "if its place is in the database's driver, look at what the URL has after its question mark"
        _say(f"an unexpected {type(error).__name__}: {text}")
    return 1


def _text(error: Exception) -> str:
    if isinstance(error, BrokerError):
        return str(error)
    cause = getattr(error, "orig", None) or error
    text = f"the database cannot be used: {type(cause).__name__}"
    if type(cause).__module__ == "builtins" and not isinstance(cause, OSError):  # it may quote a piece of the URL
        return f"{text}. If its URL has a question mark, look at what is behind it"
    if str(cause):
        text += f": {str(cause).splitlines()[0]}"
    if isinstance(error, OperationalError | InterfaceError | OSError):
        text += ". Check that its server runs, and the host, the port, the database and the log-in of its URL"
    return text


def _engine(database: str) -> AsyncEngine:
    """The engine of a database's URL.

    Raises:
        ConfigError: No engine can be made of it. The error quotes nothing of the URL, which may have its password
            anywhere.
    """
    example = "it must look like postgresql+asyncpg://user@host/database, with an asynchronous driver"
    try:
        engine = create_async_engine(database)
        place = f"{engine.url.host}/{engine.url.database}"
        if "@" not in place or engine.dialect.name == "sqlite":
            return engine
        text = "the database's URL has an @ too many: write an @ in its user or its password as %40"
    except ImportError as error:
        text = f"the driver of the database's URL is not installed ({error.name}): {example}"
    except (ArgumentError, InvalidRequestError, ValueError, TypeError):
        text = f"the database's URL cannot be read: {example}"
    raise ConfigError(text)


def _check_file(engine: AsyncEngine) -> None:
    """Checks that a file of SQLite exists. SQLite would create a missing file, also for a mistyped path.

    Raises:
        ConfigError: The database is a file of SQLite that is not there.
    """
    path = engine.url.database or ""
    if engine.dialect.name != "sqlite" or path in ("", ":memory:") or path.startswith("file:") or Path(path).exists():
        return
    raise ConfigError(
        f"there is no database file {path!r}: check the path in the database's URL. If the database is new, run the "
        "migration of cqrs-brokers-outbox first (`alembic upgrade cqrs_brokers_outbox@head`)"
    )


async def _run(options: Namespace, database: str) -> int:
    engine = _engine(database)
    outbox = Outbox(options.table, schema=options.schema)
    try:
        command: Callable[[Namespace, AsyncEngine, Outbox], Awaitable[int]] = options.command
        return await command(options, engine, outbox)
    finally:
        with suppress(TimeoutError):  # a driver says farewell, and a database that stands still does not answer
            async with asyncio.timeout(LEAVING):
                await engine.dispose()


async def _relay(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # the relay itself says what its database does
    broker = open_broker(options.broker)
    _check_file(engine)
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


def _admin(engine: AsyncEngine, outbox: Outbox) -> OutboxAdmin:
    _check_file(engine)
    return OutboxAdmin(engine, outbox)


def _print(options: Namespace, document: Any, lines: Sequence[str]) -> None:
    """Prints lines, or with --json one document. If stdout cannot be written to, the output goes to stderr, because the
    command has done its work."""
    # A text in a row may be a server's, and its characters could control a terminal.
    text = json.dumps(document) if options.json else "\n".join(map(printable, lines))
    if not text:
        return
    reason = _unwritten(sys.stdout, text)
    if reason is not None:
        _say(f"stdout cannot be written to ({reason}); this is the output:\n{text}")


def _say(text: str) -> None:
    """Prints to stderr. If stderr takes nothing, the text is lost."""
    _unwritten(sys.stderr, text)


def _unwritten(file: TextIO | None, text: str) -> str | None:
    """Prints a text. Returns why that was not possible, or None."""
    if file is None:
        return "it is closed"
    try:
        print(text, file=file, flush=True)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):  # what the buffer holds must not fail again at the end of the process
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file.fileno())
            os.close(nowhere)
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return None


async def _status(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    async with _admin(engine, outbox) as admin:
        status = await admin.status()
    _print(options, dataclasses.asdict(status), _status_lines(status))
    return 2 if status.parked or status.refused_topics or status.unattended else 0


def _status_lines(status: OutboxStatus) -> list[str]:
    repeats = ": they may be in the broker twice; a consumer drops repeats with `Inbox`"
    lines = [
        f"unsent {status.unsent}: ready {status.ready}, waiting {status.waiting}, parked {status.parked}",
        f"possible duplicates {status.possible_duplicates}{repeats if status.possible_duplicates else ''}",
    ]
    if status.unattended:
        lines.append(f"rows that could be sent, and no relay works on them: {status.unattended}; start a relay")
    if status.parked:
        lines.append(f"rows that are parked: {status.parked}; see `parked`, then `release` or `discard` them")
    lines += [f"refused topic {topic!r}: make it, or grant the right to write to it" for topic in status.refused_topics]
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
    async with _admin(engine, outbox) as admin:
        rows = await admin.parked(options.limit)
    lines = [
        f"{row.position} topic {row.topic!r} message {row.message_id} {row.error_class}: {row.error_text} "
        f"({row.behind} behind it)"
        for row in rows
    ]
    _print(options, [dataclasses.asdict(row) for row in rows], lines)
    return 0


async def _release(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    async with _admin(engine, outbox) as admin:
        return _ended(options, "released", await admin.release(*options.position))


async def _discard(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    async with _admin(engine, outbox) as admin:
        return _ended(options, "discarded", await admin.discard(*options.position))


def _ended(options: Namespace, what: str, found: int) -> int:
    """Says for how many parked rows the command was done. The exit code is 1 if some of the named rows were not
    parked."""
    _print(options, {what: found}, [f"{what} {found}"])
    asked = sorted(set(options.position))
    if found >= len(asked):
        return 0
    numbers = ", ".join(map(str, asked))
    text = f"there is no parked row {numbers}" if not found else f"{len(asked) - found} of {numbers} are no parked rows"
    _say(f"{text}: `parked` lists the numbers of those that there are")
    return 1


async def _partitions(options: Namespace, engine: AsyncEngine, outbox: Outbox) -> int:
    async with _admin(engine, outbox) as admin:
        await admin.partitions(options.count, topics=options.topic, timeout=options.timeout)
    _print(options, {"partitions": options.count}, [f"{options.count} partitions"])
    return 0


def _parser(program: str) -> ArgumentParser:
    common = ArgumentParser(add_help=False)
    common.add_argument("--database", metavar="URL", help=f"SQLAlchemy's URL, asynchronous; default: ${DATABASE}")
    common.add_argument("--table", default="outbox", help="the outbox's table (default: outbox)")
    common.add_argument("--schema", help="its schema")
    text = (
        "Runs and looks after an outbox: sends its messages, shows what waits, releases parked rows. Both URLs may "
        "come from the environment, where no list of processes shows their passwords."
    )
    parser = ArgumentParser(prog=program, description=text)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., Awaitable[int]], text: str) -> ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=text, description=text)
        made.set_defaults(command=run)
        if run is not _relay:
            made.add_argument("--json", action="store_true", help="print one JSON document")
        return made

    relay = command("relay", _relay, "Send messages until SIGTERM.")
    relay.add_argument("--broker", metavar="URL", help="the broker's config string; default: $CQRS_BROKER_URL")
    relay.add_argument("--topic", action="append", help="only this topic; may be repeated")
    relay.add_argument("--pipeline-keys", action="store_true", help="send the rows of a key together")
    relay.add_argument("--when-parked", choices=["stop", "continue"], default="stop")
    relay.add_argument("--keep", type=float, default=24 * 3600.0, help="seconds for which sent rows are kept")
    relay.add_argument("--batch", type=int, default=500, help="rows of a claim, at most")
    relay.add_argument("--lease", type=float, help="seconds for which a partition is taken")
    command("status", _status, "Say what the outbox holds; the exit code is 2 when somebody must look.")
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
