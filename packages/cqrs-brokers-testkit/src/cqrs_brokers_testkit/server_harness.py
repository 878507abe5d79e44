"""`ServerHarness`: a conformance harness for a broker that is one program with a configuration file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from cqrs_brokers import Message
from cqrs_brokers_testkit.certificates import Certificates, make_certificates
from cqrs_brokers_testkit.conformance._harness import Harness, Refusal, SizeLimit, Target, Unsupported
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import Record
from cqrs_brokers_testkit.servers._install import ServerUnavailable
from cqrs_brokers_testkit.servers._processes import LOOPBACK, ServerProcess, accepts, free_port, report, server_folder

__all__ = ["RunningServer", "ServerHarness"]

T = TypeVar("T")
_START_WITHIN = 20.0
_READ_WITHIN = 10.0


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class RunningServer:
    """One process of the broker on loopback.

    Attributes:
        folder: The server's own folder, for data, configuration and log.
        port: The port at which the server listens.
        certificates: The certificates that the server uses. None: the server uses no TLS.
        settings: The other arguments of `run_server`.
    """

    def __init__(
        self, folder: Path, port: int, certificates: Certificates | None, settings: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.port = port
        self.certificates = certificates
        self.settings = settings
        self.process: ServerProcess | None = None

    def start(self) -> None:
        """Starts the server, or starts it again, and waits until the server accepts connections."""
        assert self.process is not None
        self.process.start()
        self.process.wait_until(lambda: accepts(self.port), _START_WITHIN)


class ServerHarness(Harness):
    """Finds the program, gives each server a folder and a port, and ends all servers. The main server is behind a
    proxy.

    A subclass sets `program` and writes `configure`, and `read` or `read_back`. The class then provides `start`,
    `stop`, `kill`, `restart`, `pause`, and the methods about TLS and logins. The servers with certificates are started
    when a case first asks for them.

    Attributes:
        program: The server's program.
        install: The command that installs the program. The error for a missing program shows it.
        search: Folders to look into besides those on the PATH; `~` is the home folder.
        has_tls: Whether the broker and the plugin can use TLS. If so, `configure` is also called for servers with
            certificates.
        tls_scheme: The scheme of config strings with TLS. "": the scheme of `url`.
        other_servers: Options of config strings for other servers than the main one, such as `declare=queue`. They are
            needed if a driver must create its topics, because the suite creates no topics on these servers.
        small_topic: Settings with which `create_topic` makes a topic that takes messages of at most 20 kB. Without such
            settings the class does not provide `refuse_next`.
        small_server: Settings with which `configure` makes a server that takes messages of at most 50 kB. Without such
            settings `limited_size` does not apply.
        login: User and password for `url`. None: `url` has no login. If the broker permits it, use a password with a
            colon, `%`, `@` and a letter that is not ASCII. Then a driver that encodes the password wrongly cannot
            connect at all.
    """

    program: ClassVar[str]
    install: ClassVar[str] = ""
    search: ClassVar[Sequence[str]] = ()
    has_tls: ClassVar[bool] = False
    tls_scheme: ClassVar[str] = ""
    other_servers: ClassVar[str] = ""
    small_topic: ClassVar[Mapping[str, Any]] = {}
    small_server: ClassVar[Mapping[str, Any]] = {}
    login: ClassVar[tuple[str, str] | None] = None

    def __init__(self, url: str | None = None) -> None:
        super().__init__(url)
        self._stack = contextlib.ExitStack()
        self._clients = contextlib.ExitStack()
        self._extra: dict[str, RunningServer] = {}
        self._all_certificates: Certificates | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- what a subclass says -----------------------------------------------------------------------------------------

    def configure(self, server: RunningServer) -> Sequence[str]:
        """Writes the server's configuration into its folder.

        Args:
            server: The server, with its folder, its port on 127.0.0.1, and its certificates.

        Returns:
            The arguments of the program. The program must stay in the foreground and write its log to stdout or stderr.
        """
        raise NotImplementedError

    def client_url(self, host: str, port: int, login: tuple[str, str] | None, cafile: Path | None, tls: bool) -> str:
        """Returns the config string for a host and a login, and for TLS with an authority (None: the system's).

        Override this method if the plugin's config strings are not `scheme://user:password@host:port?ssl_cafile=file`.
        """
        userinfo = "" if login is None else f"{quote(login[0], safe='')}:{quote(login[1], safe='')}@"
        scheme = (tls and self.tls_scheme) or self.url.partition("://")[0]
        return f"{scheme}://{userinfo}{host}:{port}{'' if cafile is None else f'?ssl_cafile={cafile}'}"

    def prepare(self) -> None:
        """Called when the main server has started, and again after `dismiss_clients`. Override it to connect readers
        and administrators to `server`."""

    def server_started(self, server: RunningServer) -> None:
        """Called when a server takes connections: after its first start (before `prepare`), and after each `restart`.

        Until this method returns, nobody gets through the proxy. Override it to set up everything that a server needs.
        The method is also called for the servers with certificates. If the broker keeps nothing for readers that are
        not connected, let the readers subscribe again here.
        """

    async def read(self, topic: str) -> Sequence[Record]:
        """Returns everything that is in a topic now. Override this method. If the reader is not an asyncio client,
        override `read_back` instead."""
        raise Unsupported("the harness has neither read nor read_back")

    # -- what comes from it -------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.server = self.run_server(None)
        self.proxy = self._stack.enter_context(FaultProxy((LOOPBACK, self.server.port)))
        self.url = self.url_for(self.login)
        self.prepare()

    def stop(self) -> None:
        self._clients.close()
        self._stack.close()

    def at_end(self, action: Callable[[], object]) -> None:
        """Notes a function that `stop()` and `dismiss_clients()` call before they end a server, for example to close a
        reader's client."""
        self._clients.callback(action)

    def url_for(self, login: tuple[str, str] | None) -> str:
        """The config string of the main server through the proxy, for this user."""
        proxy = self._through()
        return self.client_url(proxy.host, proxy.port, login, None, False)

    def read_back(self, topic: str, count: int) -> Sequence[Record]:
        give_up = time.monotonic() + _READ_WITHIN
        while True:
            records = self.run_async(self.read(topic))
            if len(records) >= count or time.monotonic() > give_up:
                return records
            time.sleep(0.02)

    def kill(self) -> None:
        self._process.kill()

    def restart(self) -> None:
        proxy = self._through()
        listens = proxy.listens
        proxy.refuse()
        self.server.start()
        self.server_started(self.server)
        if listens:
            proxy.accept()

    def dismiss_clients(self) -> None:
        """Shuts the server down in good order, and starts it again. The harness's own clients are closed before."""
        self._clients.close()
        self._process.terminate()
        self.restart()
        self.prepare()

    def pause(self) -> None:
        """Freezes the server: its sockets stay open, and nobody answers. `resume_server` lets the server go on."""
        self._process.pause()

    def resume_server(self) -> None:
        """Lets a paused server go on."""
        self._process.resume()

    @property
    def direct_url(self) -> str:
        """The config string of the main server without the proxy."""
        return self.client_url(LOOPBACK, self.server.port, self.login, None, False)

    def tls_destination(self) -> Target:
        server = self._tls_server("server")
        url = self.client_url("localhost", server.port, self.login, self.certificates.ca, True)
        return Target(self._of_another_server(url), self.new_topic_name())

    def refuse_next(self) -> Refusal:
        if not self.small_topic:
            return super().refuse_next()
        topic = self.new_topic_name()
        self.create_topic(topic, **self.small_topic)
        return Refusal(self.url, topic, Message("Refused", topic, bytes(50_000)))

    def limited_size(self) -> SizeLimit:
        if not self.small_server:
            return super().limited_size()
        server = self.run_server(None, **self.small_server)
        url = self.client_url(LOOPBACK, server.port, self.login, None, False)
        return SizeLimit(self._of_another_server(url), self.new_topic_name(), 50_000)

    def _of_another_server(self, url: str) -> str:
        return f"{url}{'&' if '?' in url else '?'}{self.other_servers}" if self.other_servers else url

    def wrong_password_url(self) -> str:
        if self.login is None:
            raise Unsupported
        return self.url_for((self.login[0], "wrong"))

    def server_version(self) -> str:
        done = subprocess.run(  # noqa: S603 - the server's own program
            [self._program(), "--version"], capture_output=True, text=True, timeout=10, check=False
        )
        return (done.stdout or done.stderr).strip().splitlines()[0]

    def run_async(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in an event loop in a thread of the harness, for readers that are asyncio clients."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._loop.run_forever, name="harness", daemon=True)
            thread.start()
            self._stack.callback(self._end_loop, self._loop, thread)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60.0)

    @staticmethod
    def _end_loop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        # What the reader's client left running would be found by asyncio later, and look like a fault of the driver.
        asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result(5.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5.0)
        loop.close()

    def tls_failures(self) -> Mapping[str, str]:
        good, ca = self._tls_server("server").port, self.certificates.ca
        return {
            "an unknown authority": self.client_url("localhost", good, self.login, self.certificates.other_ca, True),
            "the system's authorities": self.client_url("localhost", good, self.login, None, True),
            "expired": self.client_url("localhost", self._tls_server("expired").port, self.login, ca, True),
            "another host's": self.client_url("localhost", self._tls_server("wrong_host").port, self.login, ca, True),
        }

    @property
    def certificates(self) -> Certificates:
        """Throw-away certificates. They are made at the first use."""
        if self._all_certificates is None:
            folder = self._stack.enter_context(server_folder("certificates", report))
            self._all_certificates = make_certificates(folder)
        return self._all_certificates

    def run_server(self, certificates: Certificates | None, **settings: Any) -> RunningServer:
        """Starts a further server, which ends with the harness.

        Args:
            certificates: The certificates that the server uses. None: no TLS.
            **settings: The content of the server's `settings`, from which `configure` makes a different server.

        Raises:
            ServerUnavailable: The program is not on this machine.
        """
        program = self._program()
        folder = self._stack.enter_context(server_folder(self.program, report))
        server = RunningServer(folder, free_port(), certificates, settings)
        command, environment = [program, *self.configure(server)], {"PATH": os.environ.get("PATH", "")}
        log = folder / f"{self.program}.log"
        server.process = ServerProcess(self.program, command, environment=environment, folder=folder, log=log)
        self._stack.callback(server.process.kill)
        server.start()
        self.server_started(server)
        return server

    def _program(self) -> str:
        path = os.pathsep.join([os.environ.get("PATH", ""), *(os.path.expanduser(each) for each in self.search)])
        program = shutil.which(self.program, path=path)
        if program is None:
            raise ServerUnavailable(self.program, f"no {self.program} on this machine", self.install)
        return program

    def _tls_server(self, which: str) -> RunningServer:
        if not self.has_tls:
            raise Unsupported
        if which not in self._extra:
            known = self.certificates
            self._extra[which] = self.run_server(known if which == "server" else known.serving(which))
        return self._extra[which]

    @property
    def _process(self) -> ServerProcess:
        assert self.server.process is not None
        return self.server.process
