"""A private RabbitMQ node on loopback, with the controls that fault tests need.

The node has its own ports, data, Erlang cookie and port mapper (epmd), so any number of nodes run side by side and next
to a RabbitMQ of the system. The node has no plugins, and takes a few seconds to start.
"""

import contextlib
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, overload
from urllib.parse import quote, urlencode, urlsplit

from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.servers._brokers import RabbitMQInstallation, rabbitmq_installation
from cqrs_brokers_testkit.servers._install import Progress
from cqrs_brokers_testkit.servers._node import PrivateServer, run_private
from cqrs_brokers_testkit.servers._processes import (
    LOOPBACK,
    ServerFailed,
    ServerProcess,
    accepts,
    container_command,
    free_port,
    report,
)

__all__ = ["RabbitMQNode", "RabbitMQServer", "rabbitmq"]

_CTL_TIMEOUT = 60.0
_ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH in the root of another Debian suite. This machine's PATH may name folders that do not exist there."""


class RabbitMQServer:
    """A RabbitMQ that tests may publish to. It may belong to others, so no method stops or breaks it.

    Args:
        url: AMQP URL with user and password, such as `amqp://guest:guest@127.0.0.1:5672/%2F`.

    Attributes:
        host: The server's host.
        port: The server's AMQP port.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = url
        self.host = parts.hostname or LOOPBACK
        self.port = parts.port or (5671 if parts.scheme == "amqps" else 5672)

    @property
    def url(self) -> str:
        """AMQP URL of the server, with user, password and virtual host."""
        return self._url

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port}>"

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the server's log, if it is a private server."""
        return "(not our server: its log is not here)"


class RabbitMQNode(PrivateServer, RabbitMQServer):
    """A private node, started by `rabbitmq()`. All its methods block.

    Attributes:
        port: AMQP port on 127.0.0.1, which is the same after every restart.
        tls_port: AMQP port with TLS. None: there is no such port.
        nodename: The Erlang node name.
        version: Version of RabbitMQ.
        folder: Folder with the node's data, configuration and log.
    """

    def __init__(
        self,
        installation: RabbitMQInstallation,
        folder: Path,
        *,
        certificates: Certificates | None,
        settings: Mapping[str, str],
        progress: Progress,
    ) -> None:
        port = free_port()
        super().__init__(f"amqp://guest:guest@{LOOPBACK}:{port}/%2F")
        self.tls_port = free_port() if certificates else None
        self.version = installation.version
        self.folder = folder
        self.nodename = f"node{port}@localhost"
        self._progress = progress
        self._installation = installation
        self._environment = self._write_configuration(certificates, settings)
        name = f"RabbitMQ {self.version}"
        log = folder / "rabbitmq.log"
        container = f"cqrs-brokers-{self.nodename.replace('@', '-')}" if installation.image else None
        self._container = container
        command = installation.command(str(installation.server))
        if container and installation.image:
            command = container_command(container, installation.image, folder, self._environment, command)
        self._process = ServerProcess(
            name, command, environment=self._environment, folder=folder, log=log, container=container
        )
        # Ours in the foreground, because the one that Erlang starts would stay behind as a daemon.
        self._epmd = ServerProcess(
            "Erlang's epmd",
            installation.command(
                str(installation.epmd), "-port", self._environment["ERL_EPMD_PORT"], "-address", LOOPBACK
            ),
            environment=self._environment,
            folder=folder,
            log=folder / "epmd.log",
        )

    def _write_configuration(self, certificates: Certificates | None, settings: Mapping[str, str]) -> dict[str, str]:
        folder, cookie = self.folder, self.folder / ".erlang.cookie"
        lines = {"listeners.tcp.1": f"{LOOPBACK}:{self.port}", **settings}
        if certificates:
            lines |= {
                "listeners.ssl.1": f"{LOOPBACK}:{self.tls_port}",
                "ssl_options.cacertfile": str(certificates.ca),
                "ssl_options.certfile": str(certificates.server),
                "ssl_options.keyfile": str(certificates.server_key),
                "ssl_options.verify": "verify_peer",
                "ssl_options.fail_if_no_peer_cert": "false",
                **{key: value for key, value in settings.items() if key.startswith("ssl_options.")},
            }
        (folder / "rabbitmq.conf").write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
        (folder / "advanced.config").write_text("[].\n")
        (folder / "enabled_plugins").write_text("[].\n")
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        erl_args = f"+sbwt none -kernel inet_dist_use_interface {{127,0,0,1}} -setcookie {cookie.read_text()}"
        if not self._installation.image:
            erl_args += " -start_epmd false"
        return {
            "PATH": _ROOT_PATH if self._installation.root else os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RUNNING_UNDER_SYSTEMD": "true",  # its script then becomes the node instead of waiting for it
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": self.nodename,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",  # to stdout, where also its start script and the Erlang machine write
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erl_args,
        }

    # --- where it is ---------------------------------------------------------------------------------------------

    def url_for(
        self,
        user: str = "guest",
        password: str = "guest",  # noqa: S107 - RabbitMQ's own default
        *,
        vhost: str = "/",
        host: str = LOOPBACK,
        port: int | None = None,
        tls: bool = False,
        **query: object,
    ) -> str:
        """Return an AMQP URL of this node.

        Args:
            user: User name.
            password: Password.
            vhost: Virtual host.
            host: Another name or address of loopback, such as "localhost" (for certificates).
            port: Another port, such as a proxy's.
            tls: Whether the URL has `amqps` and the TLS port.
            **query: Options after the "?".
        """
        if port is None:
            port = self.tls_port if tls else self.port
        if port is None:
            raise ValueError("this node has no TLS listener: start it with rabbitmq(certificates=...)")
        user, password, vhost = (quote(part, safe="") for part in (user, password, vhost))
        options = f"?{urlencode(query)}" if query else ""
        return f"{'amqps' if tls else 'amqp'}://{user}:{password}@{host}:{port}/{vhost}{options}"

    # --- the process ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the node, with its former data and ports, and wait until it takes connections on each port.

        Raises:
            ServerFailed: The node ended or was not ready after 60 seconds. The text contains the end of its log.
        """
        if not self._epmd.running and self._container is None:
            self._epmd.start()
            self._epmd.wait_until(lambda: accepts(int(self._environment["ERL_EPMD_PORT"])), 10)
        self._start_process(self._ready, self._progress, self.port)

    def stop(self) -> None:
        """End the node and its port mapper at once (SIGKILL)."""
        self._process.kill()
        self._epmd.kill()

    def _ready(self) -> bool:
        # RabbitMQ 4 opens its TLS listener after the plain one.
        return self._speaks_amqp() and (self.tls_port is None or accepts(self.tls_port))

    def _speaks_amqp(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=2) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"  # a method frame: Connection.Start
        except OSError:
            return False

    # --- rabbitmqctl ---------------------------------------------------------------------------------------------

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` (about a second) and return what it printed.

        Raises:
            ServerFailed: `rabbitmqctl` failed or took longer than 60 seconds. The text contains the output, but only
                the first argument, because another argument may be a password.
        """
        command = self._installation.command(str(self._installation.ctl), "--quiet", *arguments)
        # A port of its own for its Erlang node: two of them at once would otherwise compete for the default ones.
        port = str(free_port())
        environment = {**self._environment, "RABBITMQ_CTL_DIST_PORT_MIN": port, "RABBITMQ_CTL_DIST_PORT_MAX": port}
        if self._container:
            command = ["docker", "exec", self._container, *command]
            environment = {"PATH": environment["PATH"]}
        try:
            done = subprocess.run(  # noqa: S603
                command,
                env=environment,
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=_CTL_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"rabbitmqctl {arguments[0]} took longer than {_CTL_TIMEOUT:g} s") from None
        if done.returncode != 0:
            raise ServerFailed(f"rabbitmqctl {arguments[0]} failed ({done.returncode}): {done.stderr or done.stdout}")
        return done.stdout

    def stop_app(self) -> None:
        """Stop RabbitMQ inside the node. RabbitMQ closes its connections properly and refuses new ones."""
        self.ctl("stop_app")

    def start_app(self) -> None:
        """Start RabbitMQ inside the node after `stop_app`."""
        self.ctl("start_app")

    def add_user(self, user: str, password: str, *, vhost: str | None = "/") -> None:
        """Add a user with all permissions on `vhost`. None: the user gets no permissions."""
        self.ctl("add_user", user, password)
        if vhost is not None:
            self.set_permissions(user, vhost=vhost)

    def delete_user(self, user: str) -> None:
        """Delete a user."""
        self.ctl("delete_user", user)

    def set_permissions(
        self, user: str, *, vhost: str = "/", configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Set what a user may do in a virtual host, with regular expressions of names. "^$" allows nothing."""
        self.ctl("set_permissions", "-p", vhost, user, configure, write, read)

    def clear_permissions(self, user: str, *, vhost: str = "/") -> None:
        """Remove a user's access to a virtual host."""
        self.ctl("clear_permissions", "-p", vhost, user)

    def add_vhost(self, vhost: str, *, user: str | None = "guest") -> None:
        """Add a virtual host with all permissions for `user`. None: nobody gets permissions."""
        self.ctl("add_vhost", vhost)
        if user is not None:
            self.set_permissions(user, vhost=vhost)

    def delete_vhost(self, vhost: str) -> None:
        """Delete a virtual host with its content."""
        self.ctl("delete_vhost", vhost)

    def set_memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm. During the alarm the node blocks every connection that publishes."""
        self.ctl("set_vm_memory_high_watermark", "0.000001" if on else "0.4")

    def close_all_connections(self, reason: str = "closed by the test") -> None:
        """Make the node close every client's connection (AMQP code 320)."""
        self.ctl("close_all_connections", reason)


@overload
def rabbitmq(
    *,
    shared: Literal[False] = False,
    home: str | Path | None = None,
    certificates: Certificates | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress = report,
) -> contextlib.AbstractContextManager[RabbitMQNode]: ...
@overload
def rabbitmq(*, shared: bool, progress: Progress = report) -> contextlib.AbstractContextManager[RabbitMQServer]: ...
@contextlib.contextmanager
def rabbitmq(
    *,
    shared: bool = False,
    home: str | Path | None = None,
    certificates: Certificates | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress = report,
) -> Iterator[Any]:
    """Run a private RabbitMQ node for the length of a `with` block.

    Args:
        shared: Use the server named by `CQRS_TEST_AMQP_URL`, if that is set. For tests that break nothing.
        home: The RabbitMQ to start: a folder that has `sbin/rabbitmq-server`, or `"debian:SUITE"`, such as
            `"debian:trixie"`, for the RabbitMQ of another Debian suite. That RabbitMQ is fetched into the cache, and
            only root can run it. None: the RabbitMQ that `CQRS_TEST_RABBITMQ_HOME` names, else the RabbitMQ of this
            machine.
        certificates: Opens also a TLS listener with these certificates (see `cqrs_brokers_testkit.certificates`).
        settings: Further lines of rabbitmq.conf, which override the defaults, such as `{"heartbeat": "2"}`.
        progress: Called with each line of progress. By default the lines go to stderr.

    Yields:
        The running node (`RabbitMQNode`). With `shared=True` and the variable set, a `RabbitMQServer` without controls.

    Raises:
        ServerUnavailable: RabbitMQ is not on this machine and could not be installed.
        ServerFailed: The node did not start.
    """
    url = os.environ.get("CQRS_TEST_AMQP_URL")
    if shared and url:
        yield RabbitMQServer(url)
        return
    installation = rabbitmq_installation(progress, home)

    def make(folder: Path) -> RabbitMQNode:
        return RabbitMQNode(installation, folder, certificates=certificates, settings=settings or {}, progress=progress)

    with run_private("rabbitmq", make, progress) as node:
        yield node
