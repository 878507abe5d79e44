from cqrs_brokers_testkit.conformance.pytest_glue import BrokerConformance
from redis_harness import RedisHarness


class TestRedisStreams(BrokerConformance):
    harness = RedisHarness
