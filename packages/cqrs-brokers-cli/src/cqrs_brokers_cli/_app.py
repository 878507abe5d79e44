"""The command line: its commands and options, and what an error prints."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from cqrs_brokers import Broker, BrokerError, InsecureTransportWarning, open_broker
from cqrs_brokers.arguments import without_values

from ._check import URL_VARIABLE, Check
from ._exit_codes import ExitCode, code_of_error
from ._new import Variant, new
from ._output import Output, UnwritableError, printable, say, why_unwritable
from ._plugins import describe, list_schemes
from ._report import Report
from ._send import Input, send_body, send_lines

__all__ = ["run"]

PROGRAM = "cqrs-brokers"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line, without the program's name. Default: that of the process.

    Returns:
        The exit code, from the table in the documentation.
    """
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    _quiet()
    try:
        command = typer.main.get_command(_app())
        code = command.main(given, prog_name=PROGRAM, standalone_mode=False)
        return int(code or 0)
    except typer.TyperException as error:
        # A mistyped command is shown; anything else may be a piece of a config string that the shell took apart.
        values = given[1:] if given[0].isalpha() else given
        _complain(without_values(error.format_message(), values))
        _complain(f"{PROGRAM} --help, and {PROGRAM} COMMAND --help, show what there is")
        return ExitCode.USAGE
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except BrokerError as error:
        _complain(error.text)
        return code_of_error(error)
    except UnwritableError as error:
        if str(error):
            _complain(f"stdout cannot be written to: {error}")
        return ExitCode.BUG
    except Exception as error:
        if isinstance(error, OSError) and (reason := why_unwritable(sys.stdout)) is not None:  # such as --help
            _complain(f"stdout cannot be written to: {reason}")
            return ExitCode.BUG
        return _unexpected(error)


def _unexpected(error: Exception) -> ExitCode:
    """Says where a mistake is. Its text may quote a config string that nobody could read, so it is not shown."""
    _complain(f"an unexpected {type(error).__name__}: this is a mistake of cqrs-brokers-cli")
    say("".join(traceback.format_tb(error.__traceback__)).rstrip())
    return ExitCode.BUG


def _quiet() -> None:
    """Silences logs and warnings. They are for applications; a command itself prints what happened."""
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _complain(text: str) -> None:
    for line in text.splitlines():
        say(f"{PROGRAM}: {printable(line)}")


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is there. A stream is None if the process was started with it closed."""
    return stream is not None and stream.isatty()


def _app() -> typer.Typer:
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode="rich" if _is_terminal(sys.stdout) else None,
        help="Says what is installed and what is wrong with a config string, and sends messages.",
    )

    @app.callback()
    def options(
        show_version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
        ] = False,
    ) -> None:
        pass

    app.command("list", help="List the schemes that are installed, and whether each can be used.")(_list)
    app.command("describe", help="Describe a scheme: its options and its capabilities.")(_describe)
    app.command("check", help="Find out why a config string does not work, or that it does.")(_check)
    app.command("send", help="Send one message, or a message for each line of NDJSON.")(_send)
    app.command("new", help="Write the project of a plugin for a broker of your own.")(_new)
    passing = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command("outbox", help="Run a command of cqrs-brokers-outbox, such as status.", context_settings=passing)(
        _outbox
    )
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {version('cqrs-brokers-cli')}")
        raise typer.Exit


def _list(as_json: Json = False) -> int:
    return list_schemes(Output(as_json=as_json, repeatable=True))


def _describe(
    scheme: Annotated[str, typer.Argument(metavar="SCHEME", help="Such as kafka.")], as_json: Json = False
) -> int:
    return describe(scheme, Output(as_json=as_json, repeatable=True))


def _check(
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help=f"The config string. Default: ${URL_VARIABLE}.")
    ] = None,
    topic: Annotated[
        list[str] | None, typer.Option("--topic", "-t", help="Look at this topic too. May be repeated.")
    ] = None,
    send: Annotated[bool, typer.Option("--send", help="Send one message to each topic.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds for each step, at most.")] = 5.0,
    as_json: Json = False,
) -> int:
    if send and not topic:
        raise typer.BadParameter("--send needs a --topic")
    return asyncio.run(_run_check(Check(url, topic or [], send=send, timeout=timeout), Output(as_json=as_json)))


def _send(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[URL] TOPIC [BODY]",
            help=f"The config string (default: ${URL_VARIABLE}), the topic, and one message's body. Without a body "
            "each line of the input is one, in JSON.",
        ),
    ],
    file: Annotated[Path | None, typer.Option(help="Read lines from this file. Default: standard input.")] = None,
    name: Annotated[str, typer.Option(help="The message name.")] = "Message",
    key: Annotated[str | None, typer.Option(help="The key of every message.")] = None,
    key_field: Annotated[str | None, typer.Option(help="The field of each body that is its key.")] = None,
    id_field: Annotated[str | None, typer.Option(help="The field of each body that is its id, a UUID.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    content_type: Annotated[
        str | None, typer.Option(help="Default: JSON, or plain text for a body that is none.")
    ] = None,
    as_json: Json = False,
) -> int:
    url = words.pop(0) if "://" in words[0] else None
    if not 1 <= len(words) <= 2:
        raise typer.BadParameter("give [URL] TOPIC [BODY]; a config string has :// in it")
    if len(words) == 1 and words[0][:1] in ("{", "["):
        raise typer.BadParameter("the topic is missing: it comes before the body")
    body = words[1].encode(errors="surrogateescape") if len(words) == 2 else None
    if body is not None and file is not None:
        raise typer.BadParameter("give a body or --file, not both")
    if key is not None and key_field is not None:
        raise typer.BadParameter("give --key or --key-field, not both")
    if body is None and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter("give a body, --file, or lines on standard input")
    headers = {}
    for item in header or []:
        before, equals, value = item.partition("=")
        if not equals or not before:
            raise typer.BadParameter("--header is of the form NAME=VALUE")
        headers[before] = value
    made = Input(words[0], name, key, key_field, id_field, headers, content_type)
    output = Output(as_json=as_json)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InsecureTransportWarning)
        broker = open_broker(url) if url is not None else open_broker()
    for warning in caught:
        _complain(f"warning: {warning.message}")
    try:
        report = asyncio.run(_run_send(broker, made, body, file, progress=not as_json and _is_terminal(sys.stderr)))
    except BrokerError:
        raise
    except (ValueError, OSError) as error:
        return _unsendable("the body" if body is not None else "the input", error)
    report.show(output)
    if isinstance(report.failure, BrokerError):
        _complain(report.failure.text)
    elif isinstance(report.failure, OSError):
        _unsendable("the rest of the input", report.failure)
    elif report.failure is not None:
        _unexpected(report.failure)
    return report.exit_code


def _unsendable(what: str, error: ValueError | OSError) -> ExitCode:
    _complain(f"{what} cannot be sent: {error.strerror if isinstance(error, OSError) else error}")
    return ExitCode.USAGE


async def _run_send(broker: Broker, made: Input, body: bytes | None, file: Path | None, *, progress: bool) -> Report:
    if body is not None:
        return await send_body(broker, made, body)
    if file is None:
        return await send_lines(broker, made, sys.stdin.fileno(), progress=progress)
    with file.open("rb", buffering=0) as opened:
        return await send_lines(broker, made, opened.fileno(), progress=progress)


def _new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The scheme, such as acme.")],
    variant: Annotated[
        Variant, typer.Option(help="For a broker that is reached over a network, or one that answers one call.")
    ] = Variant.NETWORKED,
    folder: Annotated[Path | None, typer.Option(help="Default: cqrs-broker-NAME in this folder.")] = None,
    as_json: Json = False,
) -> int:
    try:
        return new(name, variant, folder or Path(f"cqrs-broker-{name}"), Output(as_json=as_json))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None


def _outbox(context: typer.Context) -> int:
    try:
        from cqrs_brokers_outbox.command import main as outbox
    except ImportError as error:
        _complain(f"outbox needs another package ({error.name} is missing): pip install cqrs-brokers-outbox")
        return ExitCode.PLUGIN
    try:
        return outbox(context.args, program=f"{PROGRAM} outbox")
    except SystemExit as end:  # argparse has said why
        return end.code if isinstance(end.code, int) else ExitCode.USAGE


async def _run_check(check: Check, output: Output) -> int:
    with output.waiting("looking …"):
        async for finding in check.run():
            output.finding(finding)
    code = check.exit_code
    counts = {level: sum(finding.level == level for finding in check.found) for level in ("fail", "warn", "unseen")}
    document: dict[str, Any] = {
        "url": check.url,
        "ok": code is ExitCode.OK,
        "exit_code": int(code),
        "findings": [finding._asdict() for finding in check.found],
        "messages": check.outcomes,
    }
    output.document(document)
    failed, warned, unseen = counts.values()
    if failed:
        all_of_them = f"{len(check.found)} findings" if len(check.found) > 1 else "1 finding"
        verdict, style = f"{failed} of {all_of_them} failed", "bold red"
    elif warned or unseen:
        verdict, style = "no failure", "bold yellow"
    else:
        verdict, style = "all is well", "bold green"
    output.line(f"{verdict}; {warned} to look at, {unseen} not looked at", style)
    return code
