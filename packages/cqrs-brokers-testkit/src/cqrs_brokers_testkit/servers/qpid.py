"""A private Apache Qpid Broker-J on loopback: another server that speaks AMQP 0-9-1."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cqrs_brokers_testkit.servers._brokers import QpidInstallation, qpid_installation
from cqrs_brokers_testkit.servers._install import Progress
from cqrs_brokers_testkit.servers._node import PrivateServer, run_private
from cqrs_brokers_testkit.servers._processes import (
    LOOPBACK,
    ServerProcess,
    accepts,
    free_port,
    report,
)

__all__ = ["QpidServer", "qpid"]

_USER, _PASSWORD = "guest", "guest"


class QpidServer(PrivateServer):
    """A private broker, started by `qpid()`. All its methods block. Its queues are in memory and do not outlive it.

    Attributes:
        port: AMQP port on 127.0.0.1 with the mechanisms that Qpid has by default: SCRAM and CRAM-MD5, no PLAIN.
        plain_port: AMQP port that also has PLAIN, for readers which know nothing else.
        version: Version of Qpid Broker-J.
        folder: Its configuration and log.
    """

    def __init__(self, installation: QpidInstallation, folder: Path, progress: Progress) -> None:
        self.port, self.plain_port = free_port(), free_port()
        self.version = installation.version
        self.folder = folder
        self._progress = progress
        config = folder / "config.json"
        config.write_text(json.dumps(self._configuration(), indent=1))
        settings = {"qpid.work_dir": folder, "qpid.initialConfigurationLocation": config}
        command = [str(installation.java), "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command += [f"-D{name}={value}" for name, value in settings.items()]
        command += ["-cp", f"{installation.libs}/*", "org.apache.qpid.server.Main"]
        command += ["--store-type", "Memory", "--initial-config-path", str(config)]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(folder)}
        name = f"Apache Qpid Broker-J {self.version}"
        self._process = ServerProcess(name, command, environment=environment, folder=folder, log=folder / "qpid.log")

    def _configuration(self) -> dict[str, Any]:
        user = {"name": _USER, "password": _PASSWORD, "type": "managed"}
        aliases = [{"name": "nameAlias", "type": "nameAlias"}, {"name": "defaultAlias", "type": "defaultAlias"}]
        listener = {"bindingAddress": LOOPBACK, "protocols": ["AMQP_0_9_1"], "virtualhostaliases": aliases}
        return {
            "name": "broker",
            "modelVersion": "8.0",
            "authenticationproviders": [
                {"name": "shipped", "type": "Plain", "users": [user]},
                {"name": "withPlain", "type": "Plain", "secureOnlyMechanisms": [], "users": [user]},
            ],
            "ports": [
                {"name": "clients", "port": str(self.port), "authenticationProvider": "shipped", **listener},
                {"name": "readers", "port": str(self.plain_port), "authenticationProvider": "withPlain", **listener},
            ],
            "virtualhostnodes": [
                {
                    "name": "default",
                    "type": "Memory",
                    "defaultVirtualHostNode": "true",
                    "virtualHostInitialConfiguration": json.dumps({"type": "Memory"}),
                }
            ],
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {LOOPBACK}:{self.port}>"

    @property
    def url(self) -> str:
        """AMQP URL of `port`, with user and password; virtual host `/`."""
        return f"amqp://{_USER}:{_PASSWORD}@{LOOPBACK}:{self.port}/%2F"

    @property
    def reader_url(self) -> str:
        """AMQP URL of `plain_port`."""
        return f"amqp://{_USER}:{_PASSWORD}@{LOOPBACK}:{self.plain_port}/%2F"

    def start(self) -> None:
        """Start the broker on its ports and wait until it takes connections on both.

        Raises:
            ServerFailed: It ended or was not ready after 60 seconds; with the end of its log.
        """
        self._start_process(lambda: accepts(self.port) and accepts(self.plain_port), self._progress, self.port)


@contextlib.contextmanager
def qpid(*, progress: Progress = report) -> Iterator[QpidServer]:
    """Run a private Apache Qpid Broker-J for the length of a `with` block.

    Args:
        progress: Called with each line of progress; by default they go to stderr.

    Yields:
        The running broker.

    Raises:
        ServerUnavailable: Qpid or Java is not on this machine and could not be installed.
        ServerFailed: It did not start.
    """
    installation = qpid_installation(progress)
    with run_private("qpid", lambda folder: QpidServer(installation, folder, progress), progress) as server:
        yield server
