"""`check`: from the string to a receipt, with a finding for each step. The plugin gives the findings that are special
to its broker.

Nothing is published without `send`, and every step is bounded in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from cqrs_brokers import (
    Broker,
    BrokerError,
    ConfigError,
    DeliveryError,
    DeliveryUnknownError,
    InsecureTransportWarning,
    InvalidMessageError,
    Message,
    MessageBroker,
    PluginError,
    open_broker,
)
from cqrs_brokers.driver import Driver
from cqrs_brokers.hooks import Plugin, load_plugin
from cqrs_brokers.inspection import Endpoint, Finding, Inspection, Step
from cqrs_brokers.messages import MessageValidator
from cqrs_brokers.options import BrokerOptions, EffectiveOption, ResolvedOptions, resolve_options
from cqrs_brokers.secret import masked, secrets_in
from cqrs_brokers.url import BrokerURL

from ._certificates import speaks_tls
from ._endpoints import Looked, look_at
from ._exit_codes import ExitCode, code_of_step
from ._report import place_of, reason_of

__all__ = ["Check", "URL_VARIABLE"]

URL_VARIABLE = "CQRS_BROKER_URL"
MESSAGE_NAME = "cqrs-brokers.check"
SHARE_OF_STEP = 0.9
"""The share of a step's time that the plugin gets. So the plugin's own error, which says more than ours, comes
first."""


class Check:
    """One run of `check`.

    Args:
        text: The config string. None: the one in `CQRS_BROKER_URL`.
        topics: Which destinations to look at.
        send: Send one message to each.
        timeout: Seconds for each step, at most.

    Attributes:
        url: The string, redacted. None until its options are known: until then, a part of an unencoded password might
            be taken for the name of an option, and be shown.
        outcomes: The outcome of each message, ready for JSON.
    """

    def __init__(self, text: str | None, topics: Sequence[str], *, send: bool, timeout: float) -> None:
        self.url: str | None = None
        self.outcomes: list[dict[str, Any]] = []
        self._text = text
        self._topics = list(dict.fromkeys(topics))
        self._send = send
        self._timeout = timeout
        self._found: list[Finding] = []
        self._secrets: frozenset[str] = frozenset()
        self._unknown = False
        self._patience = timeout * SHARE_OF_STEP
        self._driver: MessageBroker | None = None

    @property
    def found(self) -> list[Finding]:
        """All findings so far."""
        return self._found

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the first failure. A warning is not a failure."""
        failed = [finding.step for finding in self._found if finding.level == "fail"]
        if not failed:
            return ExitCode.OK
        return ExitCode.UNKNOWN if failed[0] == "send" and self._unknown else code_of_step(failed[0])

    async def run(self) -> AsyncIterator[Finding]:
        """Runs every step, and masks the string's secrets in what is found. Stops if a step fails that the next steps
        need."""
        async with contextlib.aclosing(self._steps()) as steps:
            async for finding in steps:
                # What a server or a plugin says may quote what it was given.
                finding = finding._replace(
                    subject=masked(finding.subject, self._secrets),
                    text=masked(finding.text, self._secrets),
                    remedy=masked(finding.remedy, self._secrets),
                )
                self._found.append(finding)
                yield finding

    @property
    def _failed(self) -> bool:
        return any(finding.level == "fail" for finding in self._found)

    async def _steps(self) -> AsyncGenerator[Finding, None]:
        url = self._parse()
        if isinstance(url, list):
            for finding in url:
                yield finding
            return
        yield Finding("string", "ok", "", str(replace(url, query={})))
        try:
            plugin = load_plugin(url.scheme)
            options_type = plugin.options_type()
        except BrokerError as error:
            yield Finding("plugin", "fail", f"{url.scheme}://", error.text)
            return
        yield Finding("plugin", "ok", f"{url.scheme}://", f"is provided by {plugin.title}")

        said: list[str] = []
        try:
            resolved = resolve_options(options_type, url=url)
            self._secrets = _secrets(resolved, url)
            self._driver, said = _open(url)
            self._patience = min(resolved.options.connect_timeout, self._timeout * SHARE_OF_STEP)
            inspection = _inspection(plugin, options_type, url, self._patience)
        except ConfigError as error:
            for problem in error.problems:
                yield Finding("options", "fail", "", problem)
            return
        except PluginError as error:
            yield Finding("plugin", "fail", f"{url.scheme}://", error.text)
            return
        self.url = str(url)
        yield Finding("options", "ok", "", _given(resolved.effective))
        for text in said:
            yield Finding("options", "warn", "", text)

        if inspection is None:
            steps = self._without_inspection(plugin, resolved.options, url)
        else:
            steps = self._with_inspection(plugin, inspection, resolved.options)
        async for finding in steps:
            yield finding
        if self._send:
            async for finding in self._messages(url):
                yield finding

    def _parse(self) -> BrokerURL | list[Finding]:
        text, source = self._text, ""
        if text is None:
            text, source = os.environ.get(URL_VARIABLE), URL_VARIABLE
            if not text:
                text = f"there is no config string: neither an argument nor the variable {URL_VARIABLE}"
                return [Finding("string", "fail", "", text, "give one: cqrs-brokers check 'kafka://localhost:9092'")]
        try:
            return BrokerURL.parse(text, source=source)
        except ConfigError as error:
            return [Finding("string", "fail", "", problem) for problem in error.problems]

    # -- the broker ---------------------------------------------------------------------------------------------------

    async def _with_inspection(
        self, plugin: Plugin, inspection: Inspection, options: BrokerOptions
    ) -> AsyncIterator[Finding]:
        try:
            endpoints = inspection.endpoints()
            usable: list[Endpoint] = []
            async for finding in self._hosts(endpoints, options, usable):
                yield finding
            if not endpoints or usable:
                async for finding in self._bounded(inspection.server(usable), "server", "", plugin):
                    yield await self._explained(finding, usable)
            if self._failed:
                for topic in self._topics:
                    yield Finding("topic", "unseen", topic, "not looked at, because of the failure above")
                return
            for topic in self._topics:
                if refusal := self._refusal(topic):
                    yield refusal
                    continue
                async for finding in self._bounded(inspection.topic(topic), "topic", topic, plugin):
                    yield finding
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._timeout):
                    await inspection.close()

    async def _hosts(
        self, endpoints: Sequence[Endpoint], options: BrokerOptions, usable: list[Endpoint]
    ) -> AsyncIterator[Finding]:
        """Looks at all hosts at once. The driver needs only one of them. So if one is usable, the failures of the
        others are warnings."""
        looked = await asyncio.gather(*(look_at(endpoint, options, self._timeout) for endpoint in endpoints))
        usable += [one.endpoint for one in looked if one.usable]
        for finding in _lenient(looked, bool(usable)):
            yield finding

    async def _explained(self, finding: Finding, endpoints: Sequence[Endpoint]) -> Finding:
        """Explains a plain text connection that the server ends. The server may be starting, which passes. Or the port
        may be the server's TLS port, which does not pass."""
        if finding.level != "fail" or finding.step not in ("tcp", "server"):
            return finding
        for endpoint in endpoints:
            is_meant = endpoint.tls is None and finding.subject == str(endpoint)
            if is_meant and await speaks_tls(endpoint, self._timeout):
                text = f"{endpoint} is a TLS port, and the string connects to it without TLS"
                remedy = "connect with TLS (such as amqps://, or security_protocol=SSL), or use the port without TLS"
                return Finding("tls", "fail", finding.subject, text, remedy)
        return finding

    async def _bounded(
        self, findings: AsyncIterator[Finding], step: Step, subject: str, plugin: Plugin
    ) -> AsyncIterator[Finding]:
        """The plugin's findings. An exception or a timeout of the plugin becomes a finding, too, and ends them."""
        while True:
            limit = asyncio.timeout(self._timeout)
            try:
                async with limit:
                    finding = await anext(findings)
            except StopAsyncIteration:
                return
            except BrokerError as error:
                yield Finding.of(error, subject)
                return
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError):
                    if task is not None and task.cancelling():
                        raise
                    text = "the server ended the connection while it was asked"  # a client cancels its own calls then
                    yield Finding(step, "fail", subject, text, "look at the server's log")
                    return
                if limit.expired():
                    text = f"there was no answer within {self._timeout:g} s"
                    step = "tcp" if step == "server" else step  # as when the plugin says it
                    yield Finding(
                        step, "fail", subject, text, "look at the server, or give it more time with --timeout"
                    )
                else:
                    text = f"the inspection raised {type(error).__name__}: this is a mistake of {plugin.title}"
                    yield Finding(step, "fail", subject, text, "report it to the plugin's authors")
                return
            yield finding

    async def _without_inspection(
        self, plugin: Plugin, options: BrokerOptions, url: BrokerURL
    ) -> AsyncIterator[Finding]:
        """The findings for a plugin without an inspection: connects, and asks for the broker's health."""
        endpoints = [Endpoint(host) for host in url.hosts if host.port is not None]
        for host in url.hosts:
            if host.port is None:
                text = "not looked at: the string gives no port, and the plugin does not say which one it uses"
                yield Finding("tcp", "unseen", str(host), text)
        async for finding in self._hosts(endpoints, options, []):
            yield finding
        if self._failed:
            return
        broker, failure = _broker(url, self._patience), None
        try:
            async with asyncio.timeout(self._timeout + 1.0):  # `Broker` bounds it, and says more
                await broker.connect()
                health = await broker.health()
        except TimeoutError:
            text = f"connecting took longer than {self._timeout:g} s"
            failure = Finding("server", "fail", "", text, "look at the server, or give it more time with --timeout")
        except BrokerError as error:
            failure = Finding.of(error, "")
        else:
            text = f"connected; its health is: {health.reason}"
            yield Finding("server", "ok" if health.ok else "fail", "", text)
        finally:
            with contextlib.suppress(Exception):
                await broker.close(1.0)
        if failure is not None:
            yield failure
        text = f"{plugin.title} has no inspection: nobody looked at TLS, at the server's version and at topics"
        yield Finding("server", "unseen", "", text)
        for topic in self._topics:
            not_seen = Finding("topic", "unseen", topic, "not looked at", "send a message there with --send")
            yield self._refusal(topic) or not_seen

    def _refusal(self, topic: str) -> Finding | None:
        """The finding for a topic that the driver itself refuses, or core for every driver."""
        reason = self._driver.refuse_topic(topic) if isinstance(self._driver, Driver) else None
        if reason is None:
            try:
                MessageValidator().ready(Message(message_name=MESSAGE_NAME, topic=topic, payload={}))
            except InvalidMessageError as error:
                reason = error.text
        return None if reason is None else Finding("topic", "fail", topic, reason, "give the topic another name")

    # -- a message ----------------------------------------------------------------------------------------------------

    async def _messages(self, url: BrokerURL) -> AsyncIterator[Finding]:
        failed = {finding.subject for finding in self._found if finding.level == "fail"}
        topics = [] if failed - set(self._topics) else [topic for topic in self._topics if topic not in failed]
        for topic in self._topics:
            if topic not in topics:
                yield Finding("send", "unseen", topic, "no message was sent, because of the failure above")
        if not topics:
            return
        broker = _broker(url, self._patience)
        try:
            for topic in topics:
                yield await self._message(broker, topic)
        finally:
            with contextlib.suppress(Exception):
                await broker.close(1.0)

    async def _message(self, broker: Broker, topic: str) -> Finding:
        # A compacted topic takes no message without a key.
        key = MESSAGE_NAME if broker.capabilities.ordering_key else None
        message = Message(message_name=MESSAGE_NAME, topic=topic, payload={"from": MESSAGE_NAME}, key=key)
        try:
            receipt = await broker.send_message(message, timeout=self._timeout)
        except DeliveryError as error:
            unknown = isinstance(error, DeliveryUnknownError)
            if not any(finding.step == "send" and finding.level == "fail" for finding in self._found):
                self._unknown = unknown
            self.outcomes.append({"message_id": str(message.message_id), "topic": topic, "error": type(error).__name__})
            what = "it is not known whether the message is in the broker" if unknown else "not delivered"
            return Finding("send", "fail", topic, f"{what} ({type(error).__name__}): {reason_of(error)}")
        self.outcomes.append(receipt.to_dict())
        if receipt.confirmed:
            return Finding("send", "ok", topic, f"confirmed: {place_of(receipt)}")
        return Finding("send", "warn", topic, f"handed over, and nobody confirms it: {place_of(receipt)}")


def _lenient(looked: Sequence[Looked], forgiving: bool) -> list[Finding]:
    remedy = "the driver uses the other hosts; "
    return [
        finding._replace(level="warn", remedy=remedy + (finding.remedy or "see whether this one is to be there"))
        if forgiving and finding.level == "fail"
        else finding
        for one in looked
        for finding in one.findings
    ]


def _open(url: BrokerURL) -> tuple[MessageBroker, list[str]]:
    """The driver, and the warnings that came while the broker was opened. Opening makes no connection.

    Raises:
        ConfigError: The options contradict each other.
        PluginError: The plugin does not keep its contract.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        driver = open_broker(url).driver
    said = [str(warning.message) for warning in caught if issubclass(warning.category, InsecureTransportWarning)]
    return driver, said


def _inspection(
    plugin: Plugin, options_type: type[BrokerOptions], url: BrokerURL, patience: float
) -> Inspection | None:
    """The plugin's inspection. Its `connect_timeout` is set so that the plugin gives up before we do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resolved = resolve_options(options_type, url=url, keywords={"connect_timeout": patience})
        return plugin.inspection(resolved.url or url, resolved.options)


def _broker(url: BrokerURL, patience: float) -> Broker:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_broker(url, connect_timeout=patience)


def _secrets(resolved: ResolvedOptions[Any], url: BrokerURL) -> frozenset[str]:
    options = [getattr(resolved.options, name) for name in type(resolved.options).model_fields]
    passwords = [url.password, resolved.url.password if resolved.url is not None else None]
    # If the password equals the user's name, the name is not masked: the string shows it anyway.
    return secrets_in([*passwords, *url.query.values(), *options]) - {url.username}


def _given(effective: Any) -> str:
    listed: list[EffectiveOption] = list(effective.values())
    given = [option for option in listed if option.origin != "default"]
    shown = [f"{option.name}={option.value}" for option in given if option.origin == "string"]
    shown += [f"{option.name} from the {option.origin}" for option in given if option.origin != "string"]
    return ", ".join(shown) if shown else "all have their defaults"
