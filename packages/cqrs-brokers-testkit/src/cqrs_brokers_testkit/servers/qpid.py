"""A private Apache Qpid Broker-J on loopback: another server that speaks AMQP 0-9-1."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.servers._brokers import QpidInstallation, qpid_installation
from cqrs_brokers_testkit.servers._install import Progress
from cqrs_brokers_testkit.servers._node import PrivateServer, run_private
from cqrs_brokers_testkit.servers._processes import (
    LOOPBACK,
    ServerProcess,
    free_port,
    report,
)

__all__ = ["QpidServer", "qpid"]

_READY = b"BRK-1004"
_USER, _PASSWORD = "guest", "guest"


class QpidServer(PrivateServer):
    """A private broker, started by `qpid()`. All its methods block. A Derby store in its folder keeps durable queues.

    Attributes:
        port: AMQP port on 127.0.0.1 with Qpid's default mechanisms without TLS: SCRAM and CRAM-MD5, but not PLAIN.
        plain_port: AMQP port that also has PLAIN, for readers that know no other mechanism.
        tls_port: AMQP port with TLS. None: there are no certificates.
        version: Version of Qpid Broker-J.
        folder: Folder with the broker's configuration, data and log.
    """

    def __init__(
        self,
        installation: QpidInstallation,
        folder: Path,
        progress: Progress,
        *,
        certificates: Certificates | None,
        users: Mapping[str, str],
        rules: Sequence[Mapping[str, Any]],
    ) -> None:
        self.port, self.plain_port = free_port(), free_port()
        self.tls_port = free_port() if certificates is not None else None
        self.version = installation.version
        self.folder = folder
        self._progress = progress
        config = folder / "config.json"
        config.write_text(json.dumps(self._configuration(certificates, users, rules), indent=1))
        settings = {"qpid.work_dir": folder, "qpid.initialConfigurationLocation": config}
        command = [str(installation.java), "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command += [f"-D{name}={value}" for name, value in settings.items()]
        command += ["-cp", f"{installation.libs}/*", "org.apache.qpid.server.Main"]
        command += ["--store-type", "Memory", "--initial-config-path", str(config)]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(folder)}
        name = f"Apache Qpid Broker-J {self.version}"
        self._log = folder / "qpid.log"
        self._process = ServerProcess(name, command, environment=environment, folder=folder, log=self._log)

    def _configuration(
        self, certificates: Certificates | None, users: Mapping[str, str], rules: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        logins = {_USER: _PASSWORD, **users}
        known = [{"name": name, "password": password, "type": "managed"} for name, password in logins.items()]
        aliases = [{"name": "nameAlias", "type": "nameAlias"}, {"name": "defaultAlias", "type": "defaultAlias"}]
        listener = {"bindingAddress": LOOPBACK, "protocols": ["AMQP_0_9_1"], "virtualhostaliases": aliases}
        messages = {"type": "DERBY", "storePath": str(self.folder / "messages")}
        configuration: dict[str, Any] = {
            "name": "broker",
            "modelVersion": "8.0",
            "authenticationproviders": [
                {"name": "shipped", "type": "Plain", "users": known},
                {"name": "withPlain", "type": "Plain", "secureOnlyMechanisms": [], "users": known},
            ],
            "ports": [
                {"name": "clients", "port": str(self.port), "authenticationProvider": "shipped", **listener},
                {"name": "readers", "port": str(self.plain_port), "authenticationProvider": "withPlain", **listener},
            ],
            "virtualhostnodes": [
                {
                    "name": "default",
                    "type": "JSON",
                    "storePath": str(self.folder / "node"),
                    "defaultVirtualHostNode": "true",
                    "virtualHostInitialConfiguration": json.dumps(messages),
                }
            ],
        }
        if rules:
            control = {"name": "rules", "type": "RuleBased", "priority": "1", "defaultResult": "ALLOWED"}
            configuration["accesscontrolproviders"] = [{**control, "rules": list(rules)}]
        if certificates is not None:
            files = {"privateKeyUrl": str(certificates.server_key), "certificateUrl": str(certificates.server)}
            configuration["keystores"] = [{"name": "own", "type": "NonJavaKeyStore", **files}]
            tls = {"transports": ["SSL"], "keyStore": "own", "authenticationProvider": "shipped"}
            configuration["ports"].append({"name": "tls", "port": str(self.tls_port), **tls, **listener})
        return configuration

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {LOOPBACK}:{self.port}>"

    @property
    def url(self) -> str:
        """AMQP URL of `port`, with user and password, for the virtual host `/`."""
        return f"amqp://{_USER}:{_PASSWORD}@{LOOPBACK}:{self.port}/%2F"

    @property
    def reader_url(self) -> str:
        """AMQP URL of `plain_port`."""
        return f"amqp://{_USER}:{_PASSWORD}@{LOOPBACK}:{self.plain_port}/%2F"

    def start(self) -> None:
        """Start the broker on its ports and wait until it is ready.

        Raises:
            ServerFailed: The broker ended or was not ready after 60 seconds. The text contains the end of its log.
        """
        before = self._log.stat().st_size if self._log.exists() else 0
        # It listens before its virtual host is there.
        self._start_process(lambda: _READY in self._log.read_bytes()[before:], self._progress, self.port)


@contextlib.contextmanager
def qpid(
    *,
    certificates: Certificates | None = None,
    users: Mapping[str, str] | None = None,
    rules: Sequence[Mapping[str, Any]] = (),
    progress: Progress = report,
) -> Iterator[QpidServer]:
    """Run a private Apache Qpid Broker-J for the length of a `with` block.

    Args:
        certificates: The certificates for a further port with TLS. None: there is no such port.
        users: Passwords by the names of further users.
        rules: Access rules, in the form of Qpid's provider "RuleBased". An action for which there is no rule is
            allowed.
        progress: Called with each line of progress. By default the lines go to stderr.

    Yields:
        The running broker.

    Raises:
        ServerUnavailable: Qpid or Java is not on this machine and could not be installed.
        ServerFailed: The broker did not start.
    """
    installation = qpid_installation(progress)

    def make(folder: Path) -> QpidServer:
        return QpidServer(installation, folder, progress, certificates=certificates, users=users or {}, rules=rules)

    # Its store writes each message to the disk by itself.
    with run_private("qpid", make, progress, in_memory=True) as server:
        yield server
