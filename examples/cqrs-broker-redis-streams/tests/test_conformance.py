from cqrs_brokers_testkit.conformance import Harness, Target
from cqrs_brokers_testkit.conformance.pytest_glue import BrokerConformance
from redis_server import RedisServer

WHOLE_STREAMS = "Redis refuses users and whole streams, never a single message"


class RedisHarness(RedisServer, Harness):
    url = "redis-streams://localhost"
    not_applicable = {
        "delivery.nack-is-not-success": "a stream has no nacks",
        "delivery.refused-is-not-delivered": WHOLE_STREAMS,
        "delivery.refused-spares-its-neighbours": WHOLE_STREAMS,
        "delivery.blocked-is-waited-out": "when Redis is full it refuses; it does not block",
        "delivery.tls-failure": "the plugin has no TLS",
    }

    def missing_destination(self):
        self.admin.set("no-stream", "a key that is there and is no stream")
        return Target(self.url, "no-stream")

    def forbidden_destination(self):
        return Target(self.url_for("reader"), "orders")


class TestRedisStreams(BrokerConformance):
    harness = RedisHarness
