"""Harnesses of the brokers that we ship, registered by entry points: `python -m cqrs_brokers_testkit amqp`."""

__all__: list[str] = []
