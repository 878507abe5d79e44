"""OAUTHBEARER: tokens that are refused, providers that fail, and logins that end."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiokafka.abc import AbstractTokenProvider

from cqrs_brokers import AuthenticationError, ConnectError, Message, UnreachableError, open_broker
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.servers import KafkaCluster
from cqrs_brokers_testkit.servers import kafka as start_kafka

pytestmark = pytest.mark.live

LISTENER = "listener.name.sasl_plaintext.oauthbearer"
LOGIN = (
    'org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="x";'
)


@pytest.fixture(scope="module")
def oauth(kafka: object) -> Iterator[KafkaCluster]:
    """A Kafka that takes unsigned tokens, and ends each login after three seconds at most."""
    properties = {
        "sasl.enabled.mechanisms": "OAUTHBEARER",
        f"{LISTENER}.sasl.jaas.config": LOGIN,
        f"{LISTENER}.connections.max.reauth.ms": "3000",
    }
    with start_kafka(sasl_users={"unused": "x"}, properties=properties) as cluster:
        cluster.create_topic("t")
        yield cluster


def token(life: float) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': 'app', 'iat': now - 500, 'exp': now + life})}."


class Provider(AbstractTokenProvider):  # type: ignore[misc]
    """Gives what a function gives."""

    def __init__(self, give: Callable[[], Awaitable[str]]) -> None:
        self.give = give
        self.asked = 0

    async def token(self) -> str:
        self.asked += 1
        return await self.give()


async def good() -> str:
    return token(600)


async def expired() -> str:
    return token(-100)


async def garbage() -> str:
    return "not a token"


async def fails() -> str:
    raise RuntimeError("the identity provider answered 503, secret=hunter2")


async def hangs() -> str:
    await asyncio.sleep(3600)
    return ""


async def nothing() -> Any:
    return None


async def encoded() -> Any:
    return token(600).encode()


async def empty() -> str:
    return ""


async def with_a_line_break() -> str:
    return token(600) + "\n"


async def is_cancelled() -> str:
    raise asyncio.CancelledError  # some HTTP clients let their own cancellation out


def url(cluster: KafkaCluster, options: str = "") -> str:
    return f"kafka://{cluster.bootstrap('SASL_PLAINTEXT')}?security_protocol=SASL_PLAINTEXT{options}"


@pytest.mark.parametrize(
    ("give", "expected", "says", "within"),
    [
        (expired, AuthenticationError, "refuses the token", 2.0),
        (garbage, AuthenticationError, "refuses the token", 2.0),
        (fails, UnreachableError, "token provider raised RuntimeError", 2.0),
        (hangs, UnreachableError, "token provider did not answer", 3.5),
        (nothing, UnreachableError, "token provider gave NoneType in the place of text", 2.0),
        (encoded, UnreachableError, "token provider gave bytes in the place of text", 2.0),
        (empty, UnreachableError, "token provider gave an empty text", 2.0),
        (with_a_line_break, UnreachableError, "token provider gave a token with a line break", 2.0),
        (is_cancelled, UnreachableError, "token provider raised CancelledError", 2.0),
    ],
)
async def test_a_login_that_fails(
    oauth: KafkaCluster,
    caplog: pytest.LogCaptureFixture,
    give: Callable[[], Awaitable[str]],
    expected: type[ConnectError],
    says: str,
    within: float,
) -> None:
    """Each has its class and its sentence, in time; the provider's own text is in no error and no log."""
    caplog.set_level(logging.DEBUG)
    loop = asyncio.get_running_loop()
    async with no_leaks():
        broker = open_broker(url(oauth, "&connect_timeout=2s"), sasl_oauth_token_provider=Provider(give))
        started = loop.time()
        with pytest.raises(expected, match=says) as caught:
            await broker.connect()
        assert loop.time() - started < within
        assert type(caught.value) is expected
        await broker.close()
    shown = caplog.text + str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        shown += repr(error)
        error = error.__cause__ or error.__context__
    assert "hunter2" not in shown


@pytest.mark.fault
async def test_a_connection_is_replaced_before_its_login_ends(oauth: KafkaCluster) -> None:
    """For three logins' time every message has its receipt, and new tokens were asked for."""
    provider = Provider(good)
    receipts = []
    async with open_broker(url(oauth), sasl_oauth_token_provider=provider) as broker:
        until = time.monotonic() + 9
        slowest = 0.0
        while time.monotonic() < until:
            started = time.monotonic()
            receipts.append(await broker.send_message(Message("E", "t", {}, key="k")))
            slowest = max(slowest, time.monotonic() - started)
            await asyncio.sleep(0.02)
        assert (await broker.health()).ok
    offsets = [receipt.offset for receipt in receipts]
    assert offsets == list(range(offsets[0] or 0, (offsets[0] or 0) + len(offsets)))
    assert provider.asked >= 5
