"""The one class that a plugin's author writes. It says where the broker is, how to read messages back, and how to break
the broker."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from cqrs_brokers import Message
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.proxy import FaultProxy, ProxyConnection
from cqrs_brokers_testkit.readers import Record
from cqrs_brokers_testkit.servers import free_port


class Unsupported(Exception):  # noqa: N818 - names what it says
    """The harness does not offer this method. The cases that need the method are reported as not run."""


class NotApplicable(Exception):  # noqa: N818 - names what it says
    """The broker does not have the thing that the case is about. The text is the reason, written for a user of the
    plugin.

    A method of a harness may raise this error. A case may also raise it, if only its run shows the reason.
    """


class Target(NamedTuple):
    """The destination to which a case publishes.

    Attributes:
        url: The config string.
        topic: The topic.
    """

    url: str
    topic: str


class Refusal(NamedTuple):
    """A message that passes the checks of `Broker`, but is refused by the broker, which takes other messages.

    Attributes:
        url: The config string.
        topic: A topic that can be read back. The suite sends good messages to this topic, beside the refused message.
        message: The refused message. It must be the first message that is sent with this config string. If the broker
            refuses a whole topic, the refused message has another topic than the good ones.
    """

    url: str
    topic: str
    message: Message


LOST_BEFORE_A_REFUSAL = 10
"""How many answers a forgery `one refused` loses before the refusal."""


class Forgery(NamedTuple):
    """A change of a broker's answers to messages, on their way to the driver.

    Attributes:
        meaning: What becomes of the answers to messages. `lost`: no such answer comes, but other answers come, such as
            those to a ping. `refused`: each answer says that its message was refused. `unknown`: each answer has a
            number that no message has, or a reason code that the protocol does not have. `late`: the first answer is
            kept back, and all others come. `cut`: only a part of the twelfth answer comes, and no other answer. `one
            refused`: ten answers are lost, the next answer says that its message was refused, and all later answers
            come.
        apply: Forges the answers on one connection from now on, until the connection ends. If the meaning is `late`,
            this function returns a function that lets the answer through. If the meaning is `one refused`, it returns a
            function that says how many answers have come since the refusal.
    """

    meaning: Literal["lost", "refused", "unknown", "late", "cut", "one refused"]
    apply: Callable[[ProxyConnection], Any]


class SizeLimit(NamedTuple):
    """A destination with a small limit for the size of a message.

    Attributes:
        url: The config string.
        topic: The topic. The suite does not read it back.
        most_bytes: The size of the largest message that the broker takes, in bytes, as the broker counts. The suite
            assumes that the broker counts at most 4 KiB besides the body.
    """

    url: str
    topic: str
    most_bytes: int


_OPTIONAL = {"foreign_answers", "forged_answers", "stuck_destination", "dismiss_clients", "limited_size"}
"""Methods that a harness need not override. By default they raise `NotApplicable`."""
_BY_PROXY = {"stall", "resume", "reset", "lose_answers", "connections_made"}
_OF_A_WIRE = {"proxy", "hosts_url", "peer_url", "unreachable_url", "restart", "kill", *_BY_PROXY}


class Harness:
    """Tells the suite about one plugin. Subclass it, set `url`, and override what your broker can do.

    All methods may block, and may use asyncio, because no method is called in a thread with an event loop. If a method
    is not overridden, the cases that need it are "not run". A report with such cases is not a pass.

    Attributes:
        url: The config string. If there is a `proxy`, the string names the proxy's address. `start()` may set it.
        distribution: The distribution of the plugin, if several distributions claim the scheme.
        options: Options for every broker that is opened, besides the options that a case sets.
        variants: Further sets of options, with which receipts must be as true as without. Name options that change how
            messages are written or answers are read. Each set costs a few seconds.
        most_unanswered: How many messages without an answer the broker takes at most. None: the protocol has no limit.
        scale: A factor for the number of messages that the big cases send. With 1 they send thousands. Use less for
            mutants and slow machines.
        wire: Whether there is a socket between driver and broker. If not (the broker is an object in this process), the
            cases about connections do not apply, and another case proves that no socket is opened.
        discards: Whether the broker keeps nothing, so that nothing can be read back. If so, the broker must not confirm
            anything.
        illegal_topics: Topics that this broker cannot have, besides the topics that no broker can have.
        not_applicable: Reasons, by case id, why a case has no meaning for this broker. Only waivable cases may be
            named: cases about refusals, permissions, credentials and TLS, which a broker may not have.
        proxy: The fault proxy in front of the broker, started by `start()`. None: there is no proxy.
        connect_within: Seconds in which a refused connection must be reported. The contract says 2.
        reconnect_within: Seconds after the server's return in which 95 % of the waiting sends must have succeeded.
        notices_within: Seconds in which the plugin, with the harness' options, notices a dead connection while new
            connections work. In the same time the plugin releases a message that is never answered. State this time in
            the plugin's README.
    """

    url: str = ""
    distribution: str | None = None
    options: Mapping[str, Any] = {}
    variants: Sequence[Mapping[str, Any]] = ()
    most_unanswered: int | None = None
    scale: float = 1.0
    wire: bool = True
    discards: bool = False
    illegal_topics: Sequence[str] = ()
    not_applicable: Mapping[str, str] = {}
    proxy: FaultProxy | None = None
    connect_within: float = 2.0
    reconnect_within: float = 2.0
    notices_within: float = 30.0

    def __init__(self, url: str | None = None) -> None:
        if url is not None:
            self.url = url

    # -- the server ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Called once before the first live case. Starts the server and the proxy."""

    def server_version(self) -> str:
        """The server's name and version for the report, such as "RabbitMQ 4.1.0". Called after `start()`."""
        return ""

    def stop(self) -> None:
        """Called once after the last case, also when `start()` failed."""

    def new_topic_name(self) -> str:
        """Returns a legal topic name that nobody else uses."""
        return f"conformance-{uuid.uuid4().hex[:16]}"

    def create_topic(self, topic: str) -> None:
        """Makes a topic ready to be published to and read back: for example a Kafka topic, or an AMQP queue with its
        binding.

        If the broker cannot have a topic with an odd name, this method may raise the error of the broker's client.
        """

    def delete_topic(self, topic: str) -> None:
        """Deletes the topic that `create_topic` made. The suite calls this method for topics with odd names, such as
        `#`. Such a topic may catch the messages of other topics."""

    def read_back(self, topic: str, count: int) -> Sequence[Record]:
        """Returns everything that was ever published to a topic that `create_topic` made, in order of arrival.

        Read with an independent client, never with the plugin's own code.

        Args:
            topic: The topic.
            count: Wait until at least this many messages are there, for at most 10 s. Then return all messages, even if
                they are fewer or more.
        """
        raise Unsupported

    # -- what the broker refuses --------------------------------------------------------------------------------------

    def make_unroutable(self) -> Target:
        """Returns a destination for which the broker takes messages, but has no queue."""
        raise Unsupported

    def missing_destination(self) -> Target:
        """Returns a destination that does not exist."""
        raise Unsupported

    def forbidden_destination(self) -> Target:
        """Returns a destination that exists, with credentials that may connect but not publish there.

        The credentials may publish to the topics of `create_topic`. The suite also sends to these topics, to see that
        the neighbours of a refused message are spared.
        """
        raise Unsupported

    def nacking_destination(self) -> Target:
        """Returns a destination where the broker answers every message with a nack although it keeps one copy.

        For RabbitMQ: one queue is full and rejects messages, and another queue is free. `read_back(topic)` reads the
        free queue.
        """
        raise Unsupported

    def refuse_next(self) -> Refusal:
        """Returns a message that the broker refuses as a whole, such as one that is too large for its topic."""
        raise Unsupported

    def wrong_password_url(self) -> str:
        """Returns the config string with a wrong password."""
        raise Unsupported

    def wrong_permission_url(self) -> str:
        """Returns a config string with good credentials that may not use this virtual host or cluster."""
        raise Unsupported

    def tls_failures(self) -> Mapping[str, str]:
        """Returns config strings whose TLS handshake must fail, by reason (expired, wrong host, unknown authority)."""
        raise Unsupported

    def tls_destination(self) -> Target:
        """Returns a config string whose TLS handshake succeeds, with its authority and login, and a topic there."""
        raise Unsupported

    def foreign_answers(self) -> Target:
        """Returns a destination where something else than the broker answers, such as another subscriber or a proxy.

        If this method is not overridden, the case about such answers does not apply. In most protocols nobody else can
        answer.
        """
        raise NotApplicable("nobody but the broker can answer")

    def forged_answers(self) -> Mapping[str, Forgery]:
        """Returns the forgeries by name. A name says what the forged answer is. The suite tries each forgery with its
        own broker and connection, through `proxy`.

        `cqrs_brokers_testkit.frames.forgeries` makes them. If this method is not overridden, the cases about single
        answers do not apply. One case about pings still applies if the answers to pings are always the same bytes.
        """
        raise NotApplicable("the harness forges no answers")

    def limited_size(self) -> SizeLimit:
        """Returns a destination that takes messages up to a size between 20 kB and 800 kB. It may be a server with a
        low limit for packets."""
        raise NotApplicable("the harness has no destination with a small limit of size")

    def stuck_destination(self) -> Target:
        """Returns a destination that takes no message until `resume()`, while other destinations take messages.

        For RabbitMQ: a quorum queue whose leader does not answer. For Kafka: a topic without enough replicas.
        """
        raise NotApplicable("the harness has no destination that takes nothing while others do")

    def dismiss_clients(self) -> None:
        """Lets the broker end all connections itself, with the farewell of its protocol, as when it is shut down.

        Returns when the broker takes connections again. If the server cannot do this on demand, write the farewell with
        `proxy.insert`, and end the connections.
        """
        raise NotApplicable("the harness does not let the broker say farewell")

    def blocked(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context manager. Inside its block the broker takes no messages, but keeps its connections."""
        raise Unsupported

    # -- faults -------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Ends the server at once. The messages that it confirmed are on its disk."""
        raise Unsupported

    def restart(self) -> None:
        """Starts the server after `kill()`, with the same address and data. Returns when it takes connections."""
        raise Unsupported

    def stall(self) -> None:
        """Lets nothing through in either direction. Connections stay open. Default: the proxy stalls them."""
        self._through().stall()

    def resume(self) -> None:
        """Ends every fault."""
        self._through().heal()

    def reset(self) -> None:
        """Ends all connections at once. Default: the proxy resets them."""
        self._through().reset()

    def lose_answers(self) -> None:
        """Lets messages reach the broker, but none of its answers reach the driver, until `resume()`."""
        self._through().stall("down")

    def connections_made(self) -> int:
        """Returns how many connections have been made since the harness was started."""
        return self._through().accepted

    def hosts_url(self, hosts: Sequence[Host]) -> str:
        """Returns the config string with these hosts."""
        return BrokerURL.parse(self.url).replace(hosts=list(hosts)).render(reveal=True)

    def peer_url(self, port: int) -> str:
        """Returns the config string with this port of 127.0.0.1 in the place of all hosts."""
        return self.hosts_url((Host("127.0.0.1", port),))

    def url_with_credentials(self, user: str, password: str) -> str:
        """Returns the config string with this user and password, which need not be valid.

        Override this method if credentials need further options.
        """
        url = BrokerURL.parse(self.url)
        host = ",".join(map(str, url.hosts)) or "localhost"
        _, _, rest = url.render(reveal=True).partition("://")
        tail = rest[min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest)) :]
        return f"{url.scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{host}{tail}"

    def unreachable_url(self) -> str:
        """Returns the config string of a broker that is not there. Default: a port where nobody listens."""
        return self.peer_url(free_port())

    def _through(self) -> FaultProxy:
        if self.proxy is None:
            raise Unsupported
        return self.proxy

    # -- what it offers (for the runner) ------------------------------------------------------------------------------

    def lacks(self, need: str) -> str | None:
        """Returns the reason why a case with this need cannot run or does not apply. None: the case can run."""
        if need == "read_back" and self.discards:
            return "n/a: the broker discards what it takes, so nothing can be read back"
        if self._offers(need):
            return None
        if not self.wire and need in _OF_A_WIRE:
            return "n/a: there is no wire between driver and broker"
        return f"the harness has no {need}"

    def _offers(self, need: str) -> bool:
        if need == "proxy":
            return self.proxy is not None
        overridden = getattr(type(self), need) is not getattr(Harness, need)
        if need in _OPTIONAL:
            return True
        if need in ("hosts_url", "peer_url", "unreachable_url"):
            return overridden or (self.wire and bool(BrokerURL.parse(self.url).hosts))
        return overridden or (need in _BY_PROXY and self.proxy is not None)
