"""The harness: a private redis-server, read back with redis-py's synchronous client, which the plugin does not use."""

import time

from cqrs_brokers_testkit.conformance import NotApplicable, Record, Target
from cqrs_brokers_testkit.frames import forgeries, line_length
from cqrs_brokers_testkit.server_harness import ServerHarness
from redis import Redis

USERS = """user app on >app:p%41@wörd ~* +@all
user reader on >reader-password ~* +@all -xadd
user nobody on >nobody-password ~* -@all
"""
WHOLE_STREAMS = "Redis refuses users and whole streams, never a single message"


class RedisHarness(ServerHarness):
    url = "redis-streams://localhost"
    program, install = "redis-server", "sudo apt-get install -y redis-server"
    has_tls, tls_scheme, login = True, "redis-streams+tls", ("app", "app:p%41@wörd")
    notices_within = 12.0  # after 5 s of silence a ping, and 5 s for its answer
    not_applicable = {
        "delivery.nack-is-not-success": "a stream has no nacks",
        "delivery.refused-is-not-delivered": WHOLE_STREAMS,
        "delivery.refused-spares-its-neighbours": WHOLE_STREAMS,
        "delivery.blocked-is-waited-out": "when Redis is full it refuses; it does not block",
    }

    def configure(self, server):
        settings = f"bind 127.0.0.1\ndir {server.folder}\nappendonly yes\nappendfsync always\n"
        if (known := server.certificates) is None:
            settings += f"port {server.port}\n"
        else:
            settings += f"port 0\ntls-port {server.port}\ntls-auth-clients no\ntls-ca-cert-file {known.ca}\n"
            settings += f"tls-cert-file {known.server}\ntls-key-file {known.server_key}\n"
        (server.folder / "redis.conf").write_text(settings + USERS)
        return ["redis.conf"]

    def prepare(self):
        self.admin = Redis(port=self.server.port)
        self.at_end(self.admin.close)

    def read_back(self, topic, count):
        give_up = time.monotonic() + 10
        while self.admin.xlen(topic) < count and time.monotonic() < give_up:
            time.sleep(0.02)
        return [record(topic, fields) for _, fields in self.admin.xrange(topic)]

    def missing_destination(self):
        self.admin.set("no-stream", "a key that is there and is no stream")
        return Target(self.url, "no-stream")

    def forbidden_destination(self):
        return Target(self.url_for(("reader", "reader-password")), "orders")

    def stuck_destination(self):
        raise NotApplicable("Redis runs one command after the other: all streams take messages, or none")

    def forged_answers(self):
        refusals = ("OOM command not allowed", "READONLY a replica", "NOREPLICAS", "NOPERM", "WRONGTYPE")
        return forgeries(
            line_length(r"\$(\d+)"),
            lambda frame: frame.startswith(b"$"),
            refused={text: f"-{text}\r\n".encode() for text in refusals},
            unknown={"a number": b":7\r\n", "no id": b"$2\r\nOK\r\n", "a proxy's error": b"-ERR upstream failure\r\n"},
        )

    def wrong_permission_url(self):
        return self.url_for(("nobody", "nobody-password"))


def record(topic, fields):
    body = fields.pop(b"body")
    text = {name.decode(): value.decode() for name, value in fields.items()}
    return Record.of_headers(topic, text, body, prefix="header:")
