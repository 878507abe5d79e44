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
    """The harness does not offer this; the cases that need it are reported as not run."""


class NotApplicable(Exception):  # noqa: N818 - names what it says
    """The broker does not have the thing that the case is about. The text is the reason, written for a user of the
    plugin.

    A method of a harness may raise it. So may a case that finds it out only when it runs.
    """


class Target(NamedTuple):
    """Where to publish for one case.

    Attributes:
        url: The config string.
        topic: The topic.
    """

    url: str
    topic: str


class Refusal(NamedTuple):
    """A message that passes the checks of `Broker`, but that the broker refuses, while it takes other messages.

    Attributes:
        url: The config string.
        topic: A topic that can be read back, to which the suite sends good messages beside the refused one.
        message: The refused message. It must be the first that is sent with this config string. Where the broker
            refuses by topic, its topic is another one.
    """

    url: str
    topic: str
    message: Message


LOST_BEFORE_A_REFUSAL = 10
"""How many answers a forgery `one refused` loses before the refusal."""


class Forgery(NamedTuple):
    """What a broker's answers to messages are turned into, on their way to the driver.

    Attributes:
        meaning: `lost`: they do not come, and all other answers do, such as those to a ping. `refused`: they say that
            the message was refused. `unknown`: they say what nobody can know: a number that no message has, a reason
            code that the protocol does not have. `late`: the first one is kept back, and all others come. `cut`: the
            twelfth comes in part, and nothing else. `one refused`: ten are lost, the next one says that its message was
            refused, and all others come.
        apply: Forges the answers on one connection from now on, until the connection ends. If the meaning is `late`,
            it returns a function that lets the answer through. If the meaning is `one refused`, it returns a function
            that says how many answers have come since the refusal.
    """

    meaning: Literal["lost", "refused", "unknown", "late", "cut", "one refused"]
    apply: Callable[[ProxyConnection], Any]


class SizeLimit(NamedTuple):
    """A destination whose broker takes smaller messages than others do.

    Attributes:
        url: The config string.
        topic: The topic, which need not be readable.
        most_bytes: The largest message that it takes, as the broker counts it: in bytes, with what belongs to the
            message besides its body. The suite takes 4 KiB for more than that.
    """

    url: str
    topic: str
    most_bytes: int


_OPTIONAL = {"foreign_answers", "forged_answers", "stuck_destination", "dismiss_clients", "limited_size"}
"""What a harness need not offer: by itself it raises `NotApplicable`."""
_BY_PROXY = {"stall", "resume", "reset", "lose_answers", "connections_made"}
_OF_A_WIRE = {"proxy", "hosts_url", "peer_url", "unreachable_url", "restart", "kill", *_BY_PROXY}


class Harness:
    """Tells the suite about one plugin. Subclass it, set `url`, and override what your broker can do.

    All methods may block, and may use asyncio: none is called in a thread with an event loop. If a method is not
    overridden, the cases that need it are "not run". A report with such cases is not a pass.

    Attributes:
        url: The config string. If there is a `proxy`, the string names the proxy's address. `start()` may set it.
        distribution: Which distribution is meant, when several claim the scheme.
        options: Options for every broker that is opened, besides those that a case sets.
        variants: Further sets of options with which receipts must be as true: those that change how messages are
            written or answers are read. Each costs a few seconds.
        most_unanswered: How many messages the broker takes that it has not answered; None: the protocol has no limit.
        scale: A factor for the number of messages that the big cases send. With 1 they send thousands. Use less for
            mutants and slow machines.
        wire: Whether there is a socket between driver and broker. If not (the broker is an object in this process), the
            cases about connections do not apply, and another case proves that no socket is opened.
        discards: Whether the broker keeps nothing, so that nothing can be read back. If so, it must not confirm
            anything.
        illegal_topics: Topics that this broker cannot have, besides those that no broker has.
        not_applicable: Reasons, by case id, why a case has no meaning for this broker. Only for cases that are
            waivable: refusals, permissions, credentials and TLS that a broker may not have.
        proxy: The fault proxy in front of the broker, started by `start()`; None: there is none.
        connect_within: Seconds in which a refused connection must be reported. The contract says 2.
        reconnect_within: Seconds after the server's return in which 95 % of the waiting sends must have succeeded.
        notices_within: Seconds in which the plugin notices a dead connection while new ones work. In the same time it
            releases a message that is never answered. Both are with the harness' options. State this time in the
            plugin's README.
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
        """The server's name and version for the report, such as "RabbitMQ 4.1.0"; asked after `start()`."""
        return ""

    def stop(self) -> None:
        """Called once after the last case, also when `start()` failed."""

    def new_topic_name(self) -> str:
        """A legal topic name that nobody else uses."""
        return f"conformance-{uuid.uuid4().hex[:16]}"

    def create_topic(self, topic: str) -> None:
        """Makes a topic ready to be published to and read back: for example a Kafka topic, or an AMQP queue with its
        binding.

        For odd names it may raise what the broker's client raises when the broker cannot have such a topic.
        """

    def delete_topic(self, topic: str) -> None:
        """Deletes what `create_topic` made. Called for topics with odd names, such as `#`, which may catch the messages
        of other topics."""

    def read_back(self, topic: str, count: int) -> Sequence[Record]:
        """Everything that was ever published to a topic that `create_topic` made, in the order in which it came.

        Read with an independent client, never with the plugin's own code.

        Args:
            topic: The topic.
            count: Wait until at least this many messages are there, 10 s at most. Then return all that are there, fewer
                or more.
        """
        raise Unsupported

    # -- what the broker refuses --------------------------------------------------------------------------------------

    def make_unroutable(self) -> Target:
        """A destination for which the broker takes messages, but has no queue."""
        raise Unsupported

    def missing_destination(self) -> Target:
        """A destination that does not exist."""
        raise Unsupported

    def forbidden_destination(self) -> Target:
        """A destination that exists, with credentials that may connect but not publish there.

        They may publish to the topics of `create_topic`: the suite sends there, too, to see that the neighbours of a
        refused message are spared.
        """
        raise Unsupported

    def nacking_destination(self) -> Target:
        """A destination where the broker answers every message with a nack although one copy is kept.

        For RabbitMQ: one queue is full and rejects messages, another one is free. `read_back(topic)` reads the free
        one.
        """
        raise Unsupported

    def refuse_next(self) -> Refusal:
        """A message that the broker refuses as a whole, such as one above the size that this topic takes."""
        raise Unsupported

    def wrong_password_url(self) -> str:
        """The config string with a wrong password."""
        raise Unsupported

    def wrong_permission_url(self) -> str:
        """A config string with good credentials that may not use this virtual host or cluster."""
        raise Unsupported

    def tls_failures(self) -> Mapping[str, str]:
        """Config strings whose TLS handshake must fail, by what is wrong (expired, wrong host, unknown authority)."""
        raise Unsupported

    def tls_destination(self) -> Target:
        """A config string whose TLS handshake succeeds, with the authority and login it needs, and a topic there."""
        raise Unsupported

    def foreign_answers(self) -> Target:
        """A destination where something else than the broker answers, for example another subscriber or a proxy.

        If it is not overridden, the case about such answers does not apply. Most protocols have no place for them.
        """
        raise NotApplicable("nobody but the broker can answer")

    def forged_answers(self) -> Mapping[str, Forgery]:
        """Forged answers, by what they say. Each is tried with a broker and a connection of its own, through `proxy`.

        `cqrs_brokers_testkit.frames.forgeries` makes them. Without it the cases about single answers do not apply,
        except that a ping's answers are found without help where they are always the same bytes.
        """
        raise NotApplicable("the harness forges no answers")

    def limited_size(self) -> SizeLimit:
        """A destination whose broker takes messages of at most some size, of 20 kB to 800 kB, such as a server with a
        small limit for packets."""
        raise NotApplicable("the harness has no destination with a small limit of size")

    def stuck_destination(self) -> Target:
        """A destination that takes no message, while others do, until `resume()`.

        For RabbitMQ: a quorum queue whose leader does not answer; for Kafka: a topic without enough replicas.
        """
        raise NotApplicable("the harness has no destination that takes nothing while others do")

    def dismiss_clients(self) -> None:
        """Lets the broker end all connections itself, with the farewell that its protocol has, as when it is shut down.

        Returns when it takes connections again. Where the server does not do it on demand: `proxy.insert` what it would
        say, and end the connections.
        """
        raise NotApplicable("the harness does not let the broker say farewell")

    def blocked(self) -> contextlib.AbstractContextManager[None]:
        """A context manager. While it is entered, the broker takes no messages, but keeps its connections."""
        raise Unsupported

    # -- faults -------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Ends the server at once; what it confirmed is on its disk."""
        raise Unsupported

    def restart(self) -> None:
        """Starts the server after `kill()`, with the same address and data; returns when it takes connections."""
        raise Unsupported

    def stall(self) -> None:
        """Lets nothing through in either direction; connections stay open. Default: by the proxy."""
        self._through().stall()

    def resume(self) -> None:
        """Ends every fault."""
        self._through().heal()

    def reset(self) -> None:
        """Ends all connections at once. Default: the proxy resets them."""
        self._through().reset()

    def lose_answers(self) -> None:
        """Until `resume()`, messages reach the broker, but none of its answers reaches the driver."""
        self._through().stall("down")

    def connections_made(self) -> int:
        """How many connections have been made since the harness was started."""
        return self._through().accepted

    def hosts_url(self, hosts: Sequence[Host]) -> str:
        """The config string, with these hosts."""
        return BrokerURL.parse(self.url).replace(hosts=list(hosts)).render(reveal=True)

    def peer_url(self, port: int) -> str:
        """The config string, with this port of 127.0.0.1 for all its hosts."""
        return self.hosts_url((Host("127.0.0.1", port),))

    def url_with_credentials(self, user: str, password: str) -> str:
        """The config string with this user and password. They need not be valid.

        Override it when credentials need further options.
        """
        url = BrokerURL.parse(self.url)
        host = ",".join(map(str, url.hosts)) or "localhost"
        _, _, rest = url.render(reveal=True).partition("://")
        tail = rest[min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest)) :]
        return f"{url.scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{host}{tail}"

    def unreachable_url(self) -> str:
        """The config string of a broker that is not there. Default: a port where nobody listens."""
        return self.peer_url(free_port())

    def _through(self) -> FaultProxy:
        if self.proxy is None:
            raise Unsupported
        return self.proxy

    # -- what it offers (for the runner) ------------------------------------------------------------------------------

    def lacks(self, need: str) -> str | None:
        """Why a case with this need cannot run or does not apply. None: it can run."""
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
