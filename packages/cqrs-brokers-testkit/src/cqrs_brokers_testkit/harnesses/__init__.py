"""Harnesses of the brokers that we ship. Entry points register them, for `python -m cqrs_brokers_testkit amqp`."""

__all__: list[str] = []
