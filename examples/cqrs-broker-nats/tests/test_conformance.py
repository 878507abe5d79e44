from cqrs_brokers_testkit.conformance.pytest_glue import BrokerConformance
from nats_harness import NatsHarness


class WithoutDeduplication(NatsHarness):
    """With the shortest window: JetStream's deduplication would hide what a driver sends twice."""

    stream = {**NatsHarness.stream, "duplicate_window": 0.1}


class TestNats(BrokerConformance):
    harness = NatsHarness


class TestNatsWithoutDeduplication(BrokerConformance):
    harness = WithoutDeduplication
