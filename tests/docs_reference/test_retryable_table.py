"""`.retryable` by what the broker answered, in docs/reference/errors.md: made from what the code does.

`python -m tests.docs_reference.test_retryable_table` prints the tables.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from aiormq import exceptions as client
from aiormq.abc import DeliveredMessage
from pamqp import commands
from pamqp.header import ContentHeader

from cqrs_broker_amqp import AMQPOptions
from cqrs_broker_amqp._errors import publish_failure, refusal
from cqrs_broker_amqp._topology import queue_error
from cqrs_broker_kafka._codes import ROWS, error_of, row_of
from cqrs_brokers import DeliveryError, DeliveryUnknownError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
HEAD = "| error | answer | retryable | why |\n|---|---|---|---|\n"


def line(error: DeliveryError, answer: str, *spoken: str) -> str:
    """One row; `spoken` are the server's own words, which the reader's server may say otherwise."""
    text = error.text
    for words in spoken:
        text = text.replace(words, "…")
    return f"| `{type(error).__name__}` | {answer} | {'yes' if error.retryable else 'no'} | {text} |\n"


def kafka() -> str:
    """A row for each code of the table, and one for every other number."""

    def row(code: int, answer: str) -> str:
        found = row_of(code)
        return line(error_of(found, in_doubt=issubclass(found.error, DeliveryUnknownError)), answer, f"code {code}")

    return (
        HEAD + "".join(row(code, f"{code} `{ROWS[code].name}`") for code in sorted(ROWS)) + row(999, "any other code")
    )


def returned(code: int) -> client.PublishError:
    frame = commands.Basic.Return(reply_code=code, reply_text="NO_ROUTE", exchange="events", routing_key="orders")
    channel: Any = None
    delivered = DeliveredMessage(delivery=frame, header=ContentHeader(), body=b"", channel=channel)
    return client.PublishError(delivered, frame)


def amqp() -> str:
    """A row for each answer to a message: return, nack, a closed channel, a failed declaration."""
    text = ""
    nack = client.DeliveryError(None, commands.Basic.Nack(delivery_tag=1))
    options = {
        "`Basic.Return` 312, no exchange": AMQPOptions(exchange=""),
        "`Basic.Return` 312, `declare=exchange`, or `exchange_type=` is named": AMQPOptions(declare="exchange"),
        "`Basic.Return` 312, `declare=queue`, for the second time": AMQPOptions(declare="queue"),
        "`Basic.Return` 312, exchange of an unknown type": AMQPOptions(declare="passive"),
    }
    for answer, chosen in options.items():
        text += line(publish_failure(returned(312), chosen, "orders"), answer)
    text += line(publish_failure(returned(506), AMQPOptions(), "orders"), "`Basic.Return` 506 (Apache Qpid)")
    text += line(publish_failure(nack, AMQPOptions(), "orders"), "`Basic.Nack`")
    closed = {
        "404": (404, "NOT_FOUND"),
        "403": (403, "ACCESS_REFUSED - write access to exchange 'events'"),
        "403, internal exchange": (403, "ACCESS_REFUSED - cannot publish to internal exchange 'events'"),
        "406, the size": (406, "PRECONDITION_FAILED - message size 9 is larger than configured max size 8"),
        "311": (311, "CONTENT_TOO_LARGE"),
    }
    for answer, (code, reply) in closed.items():
        error = refusal(code, reply, "events")
        assert error is not None
        text += line(error, f"`Channel.Close` {answer}; this message is known to be the cause", reply)
    assert refusal(405, "RESOURCE_LOCKED", "events") is None  # else it would need a row
    limit = "PRECONDITION_FAILED - queue limit in vhost 'v' (0) is reached"
    declared = {
        "403": client.ChannelAccessRefused("ACCESS_REFUSED - access to queue"),
        "404": client.ChannelNotFoundEntity("NOT_FOUND - no exchange"),
        "405": client.ChannelLockedResource("RESOURCE_LOCKED - exclusive"),
        "406": client.ChannelPreconditionFailed("PRECONDITION_FAILED - inequivalent arg"),
        "406, a limit": client.ChannelPreconditionFailed(limit),
    }
    for answer, failure in declared.items():
        text += line(queue_error(failure, "orders"), f"a queue's declaration fails: {answer}", str(failure.args[0]))
    return HEAD + text


TABLES = {"kafka": kafka, "amqp": amqp}


@pytest.mark.parametrize("broker", TABLES)
def test_the_table_is_what_the_code_does(broker: str) -> None:
    """Class, answer, value and reason of each row are those of the plugin."""
    found = re.search(rf"<!-- retryable: {broker} -->\n((?:\|.*\n)+)", PAGE.read_text())
    assert found is not None
    assert found[1] == TABLES[broker]()


if __name__ == "__main__":
    for table in TABLES.values():
        print(table())
