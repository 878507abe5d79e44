"""A private redis-server on loopback, behind the fault proxy: start, kill, restart, read back."""

import contextlib
import shutil
import time
from datetime import datetime

from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import Record
from cqrs_brokers_testkit.servers import ServerUnavailable, free_port
from cqrs_brokers_testkit.servers.processes import ServerProcess, accepts, report, server_folder
from redis import Redis

CONFIGURATION = """
bind 127.0.0.1
port {port}
dir {folder}
appendonly yes
appendfsync always
user app on >app-password ~* +@all
user reader on >reader-password ~* +@all -xadd
user nobody on >nobody-password ~* -@all
"""
HEADER = "header:"


class RedisServer:
    """The part of a harness that has to do with the server; `Harness` says what each method is for."""

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise ServerUnavailable("Redis", "no redis-server on this machine", "sudo apt-get install -y redis-server")
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(server_folder("redis", report))
        self.port = free_port()
        configuration, log = folder / "redis.conf", folder / "redis.log"
        configuration.write_text(CONFIGURATION.format(port=self.port, folder=folder))
        command = [program, str(configuration)]
        self._process = ServerProcess("redis-server", command, environment={}, folder=folder, log=log)
        self._stack.callback(self._process.kill)
        self.restart()
        self.admin = self._stack.enter_context(Redis(port=self.port))
        self.proxy = self._stack.enter_context(FaultProxy(("127.0.0.1", self.port)))
        self.url = self.url_for("app")

    def stop(self) -> None:
        self._stack.close()

    def kill(self) -> None:
        self._process.kill()

    def restart(self) -> None:
        self._process.start()
        self._process.wait_until(lambda: accepts(self.port), 20)

    def url_for(self, user: str, password: str | None = None) -> str:
        """The config string, through the proxy, with the user's own password or another."""
        return f"redis-streams://{user}:{password or user + '-password'}@{self.proxy.address}"

    def wrong_password_url(self) -> str:
        return self.url_for("app", "wrong")

    def wrong_permission_url(self) -> str:
        return self.url_for("nobody")

    def read_back(self, topic: str, count: int) -> list[Record]:
        """Reads with redis-py's synchronous client, which the plugin does not use."""
        give_up = time.monotonic() + 10
        while self.admin.xlen(topic) < count and time.monotonic() < give_up:
            time.sleep(0.02)
        return [_record(topic, fields) for _, fields in self.admin.xrange(topic)]


def _record(topic: str, fields: dict[bytes, bytes]) -> Record:
    body = fields.pop(b"body")
    text = {name.decode(): value.decode() for name, value in fields.items()}
    return Record(
        topic=topic,
        key=text.get("ordering-key"),
        name=text["message-name"],
        message_id=text["message-id"],
        headers={name.removeprefix(HEADER): value for name, value in text.items() if name.startswith(HEADER)},
        body=body,
        content_type=text["content-type"],
        timestamp=datetime.fromisoformat(text["timestamp"]),
    )
